"""Measures along depth, on models and numbers whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dar import RoutingConfig, SiT
from dar.diagnostics import (
    DEPTH_MEASURES,
    EFFECTS,
    RunningMarginals,
    capture,
    effect_variances,
    interpolated,
    measures_of,
    probe_r2,
    readers_of,
    recorded_pass,
    removal_costs,
    sample_losses,
    source_similarity,
    symptoms,
    variance_shares,
)
from dar.diagnostics.measures import cosine, effective_sources, entropy, group_share, rms
from dar.diagnostics.probe import ridge_fit, ridge_r2, split_by_image
from dar.diagnostics.readers import Reader
from dar.routing.densenet import DenselyConnected
from tests.conftest import perturbed, tiny_config

PLAIN = RoutingConfig(kind="residual")
KINDS = ["dar", "residual", "attnres", "densenet", "unet_skip", "hyper"]
WIDTH = 16


def tiny(routing: RoutingConfig = PLAIN, depth: int = 2) -> SiT:
    torch.manual_seed(0)
    model = SiT(tiny_config(routing=routing, depth=depth))
    perturbed(model, std=0.2)
    return model


def batch(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, eps, t, y."""
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, size, 1, 8, 8, generator=generator)
    return x0, eps, torch.rand(size, generator=generator), torch.arange(size) % 3


def close_gate(model: SiT, block: int, sublayer: int) -> None:
    """Let a sublayer (0 attention, 1 MLP) of a block write zeros, whatever it is fed."""
    layer = model.blocks[block].adaLN_modulation[-1]  # type: ignore[index, union-attr]
    rows = slice((3 * sublayer + 2) * WIDTH, (3 * sublayer + 3) * WIDTH)
    with torch.no_grad():
        layer.weight[rows] = 0  # type: ignore[index]
        layer.bias[rows] = 0  # type: ignore[index]


class TestCapture:
    def test_reads_and_writes_of_the_plain_stream_are_its_running_sum(self) -> None:
        model = tiny()
        x0, _, t, y = batch()
        with capture(model) as record:
            model(x0, t, y)
        assert len(record.writes) == 4 and len(record.reads) == 5
        total = record.embedding
        assert total is not None and torch.equal(record.reads[0], total)
        for written, read in zip(record.writes, record.reads[1:], strict=True):
            total = total + written
            assert torch.equal(read, total)
        assert [z is h for z, h in zip(record.hidden, record.reads[::2], strict=True)] == [True] * 3

    @pytest.mark.parametrize("kind", KINDS)
    def test_recording_changes_no_bit_and_leaves_no_trace_after_an_exception(self, kind: str) -> None:
        model = tiny(RoutingConfig(kind=kind, chunk_size=2))
        x0, _, t, y = batch()
        before, attributes = model(x0, t, y), dict(vars(model.routing))
        with pytest.raises(RuntimeError, match="stop"), capture(model) as record:
            assert torch.equal(model(x0, t, y), before)

            def fail(_: int, output: Tensor) -> Tensor:
                raise RuntimeError("stop")

            with capture(model, fail):
                model(x0, t, y)
        assert len(record.writes) == 0 and record.embedding is not None  # the broken pass began the record anew
        assert vars(model.routing) == attributes
        assert torch.equal(model(x0, t, y), before)

    def test_contexts_nest(self) -> None:
        model = tiny()
        x0, _, t, y = batch()
        with capture(model) as outer:
            with capture(model, lambda i, v: v * 2 if i == 1 else v) as inner:
                model(x0, t, y)
            assert torch.equal(outer.writes[0], inner.writes[0])
            model(x0, t, y)
            assert torch.equal(2 * outer.writes[0], inner.writes[0])

    def test_each_pass_begins_anew(self) -> None:
        model = tiny()
        x0, _, t, y = batch()
        with capture(model) as record:
            model(x0, t, y)
            model(x0[:2], t[:2], y[:2])
        assert len(record.writes) == 4 and len(record.writes[0]) == 2


class TestGradient:
    def test_in_the_plain_stream_it_is_that_of_the_hidden_state(self) -> None:
        model = tiny(depth=3)
        with capture(model) as record:
            loss = sample_losses(model, *batch())
            of_hidden = torch.autograd.grad(loss.sum(), record.hidden[1:])
        for gradient, expected in zip(recorded_pass(model, *batch()).gradients, of_hidden, strict=True):
            assert torch.equal(gradient, expected)

    @pytest.mark.parametrize("kind", ["residual", "dar"])
    def test_agrees_with_one_sample_at_a_time_by_hand(self, kind: str) -> None:
        model = tiny(RoutingConfig(kind=kind, chunk_size=2))
        x0, eps, t, y = batch()
        measured = DEPTH_MEASURES["gradient_rms"].compute(recorded_pass(model, x0, eps, t, y))
        for sample in range(len(y)):
            one = slice(sample, sample + 1)
            with capture(model) as record:
                velocity = model((1 - t[one]) * x0[one] + t[one] * eps[one], t[one], y[one])
                loss = ((velocity - eps[one] + x0[one]) ** 2).mean()
                gradients = torch.autograd.grad(loss, [record.writes[1], record.writes[3]])
            expected = torch.stack([gradient.square().mean().sqrt() for gradient in gradients])
            torch.testing.assert_close(measured[:, sample], expected)

    def test_does_not_depend_on_the_batch_size(self) -> None:
        model = tiny(RoutingConfig(chunk_size=2))
        whole = recorded_pass(model, *batch())
        part = recorded_pass(model, *(value[2:4] for value in batch()))
        for gradient, expected in zip(part.gradients, whole.gradients, strict=True):
            torch.testing.assert_close(gradient, expected[2:4])

    def test_leaves_the_parameters_alone_and_works_where_they_are_frozen(self) -> None:
        model = tiny(RoutingConfig(chunk_size=2))
        free = recorded_pass(model, *batch())
        assert all(parameter.grad is None for parameter in model.parameters())
        model.requires_grad_(False)
        with torch.no_grad():
            frozen = recorded_pass(model, *batch())
        for gradient, expected in zip(frozen.gradients, free.gradients, strict=True):
            torch.testing.assert_close(gradient, expected)
        assert not any(parameter.requires_grad for parameter in model.parameters())


class TestBlocks:
    def test_an_identity_block_has_cosine_one_and_no_importance(self) -> None:
        model = tiny(depth=3)
        close_gate(model, 1, 0)
        close_gate(model, 1, 1)
        cosines = DEPTH_MEASURES["neighbour_cosine"].compute(recorded_pass(model, *batch()))
        torch.testing.assert_close(cosines[1], torch.ones(6))
        assert (cosines[[0, 2]] < 0.999).all()
        costs = removal_costs(model, *batch())
        assert (costs[2:4] == 0).all()
        assert (costs[[0, 1, 4, 5]] != 0).all()

    @pytest.mark.parametrize("kind", ["residual", "dar"])
    @pytest.mark.parametrize("removed", [1, 4])
    def test_removal_is_what_a_closed_gate_does(self, kind: str, removed: int) -> None:
        model = tiny(RoutingConfig(kind=kind, chunk_size=2))
        cost = removal_costs(model, *batch())[removed - 1]
        with torch.no_grad():
            intact = sample_losses(model, *batch())
            close_gate(model, (removed - 1) // 2, (removed - 1) % 2)
            torch.testing.assert_close(cost, sample_losses(model, *batch()) - intact)

    def test_symptoms_are_means_over_the_batch(self) -> None:
        model = tiny()
        found = symptoms(model, *batch())
        run = recorded_pass(model, *batch())
        assert found.hidden_rms.shape == (3,) and found.gradient_rms.shape == found.neighbour_cosine.shape == (2,)
        z = run.record.hidden
        torch.testing.assert_close(found.hidden_rms[1], z[1].square().mean((1, 2)).sqrt().mean())
        expected = torch.nn.functional.cosine_similarity(z[1], z[2], dim=-1).mean()
        torch.testing.assert_close(found.neighbour_cosine[1], expected)
        torch.testing.assert_close(found.gradient_rms[0], run.gradients[0].square().mean((1, 2)).sqrt().mean())

    def test_sources_are_what_was_written(self) -> None:
        run = recorded_pass(tiny(), *batch())
        found = DEPTH_MEASURES["source_rms"].compute(run)
        assert found.shape == (5, 6) and run.record.embedding is not None
        torch.testing.assert_close(found[0], rms(run.record.embedding))
        torch.testing.assert_close(found[3], rms(run.record.writes[2]))

    def test_source_similarity(self) -> None:
        model = tiny()
        close_gate(model, 1, 0)
        x0, eps, t, y = batch()
        found = source_similarity(model, interpolated(x0, eps, t), t, y)
        with capture(model) as record:
            model(interpolated(x0, eps, t), t, y)
        expected = torch.nn.functional.cosine_similarity(record.writes[0], record.writes[3], dim=-1).mean()
        torch.testing.assert_close(found[0, 3], expected)
        torch.testing.assert_close(found, found.T)
        torch.testing.assert_close(found.diagonal(), torch.tensor([1.0, 1, 0, 1]))

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_measure_of_every_routing_is_finite(self, kind: str) -> None:
        model = tiny(RoutingConfig(kind=kind, chunk_size=2))
        run = recorded_pass(model, *batch())
        for measure in measures_of(model):
            values = measure.compute(run)
            assert values.shape[1] == 6 and values.isfinite().all(), measure.name


class TestWeights:
    def test_entropy_of_known_weights(self) -> None:
        even, one_hot = torch.full((4, 1, 1), 0.25), torch.eye(4)[:, :1, None]
        torch.testing.assert_close(entropy(even).item(), math.log(4))
        torch.testing.assert_close(effective_sources(even).item(), 4.0)
        assert effective_sources(one_hot).item() == 1.0
        halves = torch.tensor([0.5, -0.5, 0.0]).view(3, 1, 1)  # sign and sum do not matter
        torch.testing.assert_close(effective_sources(6 * halves).item(), 2.0)
        assert entropy(torch.zeros(0, 2, 3)).isnan().all()

    def test_group_share(self) -> None:
        weights = torch.tensor([0.5, 0.2, 0.3]).view(3, 1, 1)
        torch.testing.assert_close(group_share(weights, [0, 2]).item(), 0.8)
        assert group_share(weights, []).item() == 0

    def test_zero_queries_share_evenly(self) -> None:
        torch.manual_seed(0)
        model = SiT(tiny_config(routing=RoutingConfig(query="static", chunk_size=1), depth=2))
        perturbed(model.blocks)
        run = recorded_pass(model, *batch())
        counts = torch.arange(1, 6).float()  # sublayers 1..4 and the head
        values = {m.name: m.compute(run).mean(1) for m in measures_of(model)}
        torch.testing.assert_close(values["weight_entropy"], counts.log())
        torch.testing.assert_close(values["effective_number"], counts)
        torch.testing.assert_close(values["embedding_share"], 1 / counts)
        torch.testing.assert_close(values["first_half_share"], (counts - 1).clamp(max=2) / counts)
        torch.testing.assert_close(values["second_half_share"], (counts - 3).clamp(min=0) / counts)

    def test_planted_weights_are_found(self) -> None:
        model = tiny(RoutingConfig(kind="densenet", chunk_size=2))
        assert isinstance(model.routing, DenselyConnected)
        readers = readers_of(model.routing)
        assert [list(reader.sources) for reader in readers] == [
            ["embedding"],
            ["embedding", "attn 1"],
            ["embedding", "chunk 1"],
            ["embedding", "chunk 1", "attn 2"],
            ["embedding", "chunk 1", "attn 2", "mlp 2"],
        ]
        with torch.no_grad():
            model.routing.scalars.copy_(torch.tensor([2.0, 3, 1, 1, 1, 1, 1, -2, 1, 2, 3, 4]))
        values = {m.name: m.compute(recorded_pass(model, *batch())).mean(1) for m in measures_of(model)}
        torch.testing.assert_close(values["embedding_share"], torch.tensor([1, 0.75, 0.5, 0.25, 0.1]))
        torch.testing.assert_close(values["first_half_share"], torch.tensor([0, 0.25, 0.5, 0.25, 0.2]))
        torch.testing.assert_close(values["second_half_share"], torch.tensor([0, 0, 0, 0.5, 0.7]))
        torch.testing.assert_close(values["weight_entropy"][2].item(), math.log(2))

    def test_what_lies_behind_a_source(self) -> None:
        dar = readers_of(tiny(RoutingConfig(chunk_size=(3, 1))).routing)
        assert [reader.name for reader in dar] == ["attn 1", "mlp 1", "attn 2", "mlp 2", "head"]
        assert [list(covered) for covered in dar[3].covers] == [[], [1, 2, 3]]
        blocks = readers_of(tiny(RoutingConfig(kind="attnres", chunk_size=3), depth=3).routing)
        assert list(blocks[5].sources) == ["embedding", "chunk 1", "up to attn 3"]
        assert [list(covered) for covered in blocks[5].covers] == [[], [1, 2, 3], [4, 5]]
        short = readers_of(tiny(RoutingConfig(chunk_size=3)).routing)[-1]
        assert [list(covered) for covered in short.covers] == [[], [1, 2, 3], [4]]
        for size in (1, 2, 3, 4):
            last = readers_of(tiny(RoutingConfig(kind="attnres", chunk_size=size)).routing)[-1]
            assert sorted(sublayer for covered in last.covers for sublayer in covered) == [1, 2, 3, 4], size
        anchored = readers_of(tiny(RoutingConfig(chunk_size=1, anchor=True)).routing)
        assert list(anchored[1].sources) == ["attn 1"] and not anchored[1].embedding
        # The anchor is dar's alone; elsewhere the setting is without effect.
        unmoved = readers_of(tiny(RoutingConfig(kind="attnres", chunk_size=1, anchor=True)).routing)
        assert list(unmoved[1].sources) == ["embedding", "attn 1"]
        assert readers_of(tiny().routing) == []

    def test_halves_of_depth_go_by_the_middle_of_a_source(self) -> None:
        reader = Reader("head", ["embedding", "chunk 1", "chunk 2"], [range(0), range(1, 4), range(4, 9)])
        assert reader.sources_within(0, 4.5) == [1] and reader.sources_within(4.5, 100) == [2]
        assert reader.sources_within(0, 2) == [1] and reader.sources_within(2, 6) == [2]  # the middle itself is within
        assert reader.embedding == [0]


def planted(**effects: float) -> tuple[Tensor, Tensor]:
    """x (2 sources, 3 times, 8 images of 2 classes, 5 tokens) with effects of the given standard deviation."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(8) % 2

    def unit(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values - values.mean()

    by_class = unit(2)
    image = unit(4)
    parts = {
        "t": unit(3).view(3, 1, 1),
        "class": by_class[classes].view(1, 8, 1),
        "image": image.repeat_interleave(2).view(1, 8, 1),
        "position": unit(5).view(1, 1, 5),
        "rest": unit(3).view(3, 1, 1) * unit(5).view(1, 1, 5),
    }
    x = torch.zeros(3, 8, 5, dtype=torch.float64)
    for name, size in effects.items():
        x = x + size * parts[name] / parts[name].std(correction=0)
    return torch.stack([x, 0.3 - 0.1 * x]), classes


def running(x: Tensor, step: int) -> RunningMarginals:
    sums = RunningMarginals(x.shape[1], x.shape[2])
    for t in range(x.shape[1]):
        for first in range(0, x.shape[2], step):
            images = slice(first, first + step)
            sums.add(x[:, t, images], t, images)
    return sums


class TestVariance:
    @pytest.mark.parametrize("effect", EFFECTS)
    def test_one_effect_explains_all(self, effect: str) -> None:
        x, classes = planted(**{effect: 1.0})
        shares = variance_shares(effect_variances(running(x, 8).result(), classes))
        expected = torch.tensor([float(name == effect) for name in EFFECTS], dtype=torch.float64)
        torch.testing.assert_close(shares, expected.expand(2, 5))

    def test_effects_add_up(self) -> None:
        x, classes = planted(**{"t": 1.0, "class": 4.0, "image": 5.0, "position": 2.0, "rest": 3.0})
        found = effect_variances(running(x, 3).result(), classes)
        torch.testing.assert_close(found[0], torch.tensor([1.0, 16, 25, 4, 9], dtype=torch.float64))
        torch.testing.assert_close(found.sum(1), x.flatten(1).var(1, correction=0))

    def test_nothing_varies(self) -> None:
        x = torch.full((1, 3, 4, 5), 1 / 3)
        variances = effect_variances(running(x, 4).result(), torch.arange(4) % 2)
        assert (variances == 0).all()
        assert variance_shares(variances).isnan().all()

    def test_an_unbalanced_design_is_refused(self) -> None:
        x, _ = planted(t=1.0)
        with pytest.raises(ValueError, match=r"classes have \[1, 7\] images"):
            effect_variances(running(x, 8).result(), torch.arange(8).clamp(max=1))


class TestProbe:
    def test_ridge_is_where_the_gradient_of_its_objective_is_zero(self) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(40, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10, 0.1])
        y = torch.randn(40, generator=generator, dtype=torch.float64)
        w, b = (part.requires_grad_() for part in ridge_fit(x, y, 0.3))
        scale = x.std(0, correction=0)
        objective = (x @ w + b - y).square().mean() + 0.3 * (scale * w).square().sum()
        objective.backward()
        assert w.grad is not None and b.grad is not None
        torch.testing.assert_close(w.grad, torch.zeros_like(w), atol=1e-12, rtol=0)
        torch.testing.assert_close(b.grad, torch.zeros_like(b), atol=1e-12, rtol=0)

    def test_an_exact_line_is_found(self) -> None:
        x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x[:, 3] = 7.0  # a constant feature is of no use and does no harm
        y = x[:, :3] @ torch.tensor([1.0, -2, 3], dtype=torch.float64) + 5
        assert ridge_r2((x[:30], y[:30]), (x[30:], y[30:]), 1e-12) == pytest.approx(1, abs=1e-9)

    def test_known_r2(self) -> None:
        """y = x + noise of a quarter of its variance: R^2 is 1 / 1.25."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8000, 2, generator=generator)
        y = x[:, 0] + 0.5 * torch.randn(8000, generator=generator)
        image = torch.arange(8000) % 2000
        score = probe_r2(x, y, image, num_splits=3, generator=torch.Generator().manual_seed(1))
        assert score.mean == pytest.approx(0.8, abs=0.02) and 0 < score.spread < 0.02

    def test_knowing_the_image_does_not_help(self) -> None:
        """The target is a property of the image, and the features name the image: of new images they say nothing."""
        image = torch.arange(40).repeat(10)
        target = torch.randn(40, generator=torch.Generator().manual_seed(0))[image]
        features = torch.eye(40)[image]
        score = probe_r2(features, target, image, num_splits=3, generator=torch.Generator().manual_seed(1))
        assert score.mean < 0.05

    def test_splits_share_no_image(self) -> None:
        image = torch.arange(21) % 7
        parts = split_by_image(image, torch.Generator().manual_seed(0))
        assert torch.stack(parts).sum(0).eq(1).all()
        sets = [set(image[part].tolist()) for part in parts]
        assert [len(members) for members in sets] == [2, 1, 4] and not sets[0] & sets[1] | sets[0] & sets[2]
        with pytest.raises(ValueError, match="at least 4 images"):
            split_by_image(torch.arange(9) % 3, torch.Generator())


def test_cosine_of_known_vectors() -> None:
    a = torch.tensor([[[3.0, 4], [1, 0]]])
    assert cosine(a, 2 * a).item() == pytest.approx(1)
    assert cosine(a, torch.tensor([[[4.0, -3], [1e-15, 0]]])).item() == pytest.approx(0.5)
    assert cosine(a, torch.zeros_like(a)).item() == 0
