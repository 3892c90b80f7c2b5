"""Constant weights at single timesteps: what they replace, what they leave alone, and the bound of their error."""

from dataclasses import replace

import pytest
import torch

from dar import RoutingConfig, SiT
from dar.diagnostics import capture
from dar.folding import fold_routing
from dar.routing import mixers
from dar.tape import TorchTape
from tests.test_sit import RESIDUAL, SMALL, generator, perturbed

ROUTINGS = [
    RoutingConfig(),
    RoutingConfig(query="dynamic", chunk_size=3, scale="count", anchor=True, final=False),
    RoutingConfig(kind="attnres", chunk_size=3),
]
T = (0.25, 1.0)


def inputs(num: int = 6):
    y = torch.arange(num) % 5
    return [(torch.randn(num, 3, 4, 4, generator=generator(i), dtype=torch.float64), t, y) for i, t in enumerate(T)]


def at(model: SiT, x_t: torch.Tensor, t: float, y: torch.Tensor) -> torch.Tensor:
    return model(x_t, torch.full((len(y),), t, dtype=x_t.dtype), y)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_nothing_is_folded_without_tolerance(routing):
    model = perturbed(replace(SMALL, routing=routing))
    folded, found = fold_routing(model, inputs(), tolerance=0.0)
    for x_t, t, y in inputs():
        torch.testing.assert_close(at(folded, x_t, t, y), at(model, x_t, t, y))
    # A reader of a single source has nothing to vary.
    assert [f.num_folded for f in found] == [sum(d == 0 for d in f.deviations) for f in found]


@pytest.mark.parametrize("routing", ROUTINGS)
def test_everything_folded_uses_the_means(routing):
    """At a folded t the weights are the means over samples; elsewhere, and for mixed t, the model is as it was."""
    model = perturbed(replace(SMALL, routing=routing))
    folded, found = fold_routing(model, inputs(), tolerance=1e9)
    num_readers = model.routing.num_readers
    assert [f.num_folded for f in found] == [num_readers] * 2
    for x_t, t, y in inputs():
        times = torch.full((len(y),), t, dtype=x_t.dtype)
        assert not torch.allclose(at(folded, x_t, t, y), at(model, x_t, t, y))
        for constant, weights in zip(
            folded.routing_weights(x_t, times, y), model.routing_weights(x_t, times, y), strict=True
        ):
            torch.testing.assert_close(constant, weights.mean(1, keepdim=True).expand_as(constant))
        assert torch.equal(at(folded, x_t, 0.5, y), at(model, x_t, 0.5, y))
        mixed = torch.linspace(*T, len(y), dtype=x_t.dtype)
        assert torch.equal(folded(x_t, mixed, y), model(x_t, mixed, y))


@pytest.mark.parametrize("routing", ROUTINGS)
def test_folded_in_part_with_gradients_and_without(routing):
    """The two ways of reading what is not folded agree: mixtures, weights, and the gradient with differences."""
    model = perturbed(replace(SMALL, routing=routing))
    _, (everything, _) = fold_routing(model, inputs(), tolerance=1e9)
    limit = sorted(everything.deviations)[len(everything.deviations) // 2]
    folded, (found, _) = fold_routing(model, inputs(), tolerance=limit)
    assert 0 < found.num_folded < len(found.deviations)
    x_t, t, y = inputs()[0]
    x_t.requires_grad_()
    with capture(folded) as record:
        output = at(folded, x_t, t, y)
    step = 1e-5 * torch.randn(x_t.shape, generator=generator(9), dtype=x_t.dtype)
    with torch.no_grad():
        torch.testing.assert_close(at(folded, x_t, t, y), output)
        change = (at(folded, x_t + step, t, y) - at(folded, x_t - step, t, y)).sum() / 2
    torch.testing.assert_close((torch.autograd.grad(output.sum(), x_t)[0] * step).sum(), change, rtol=1e-5, atol=0.0)
    times = torch.full((len(y),), t, dtype=x_t.dtype)
    found_weights = folded.routing_weights(x_t, times, y)
    assert len(found_weights) == folded.routing.num_readers
    constants = folded.routing.folds[0].weights
    for got, expected, constant in zip(found_weights, record.stream.weights, constants, strict=True):
        torch.testing.assert_close(got, expected)
        if constant is not None:
            torch.testing.assert_close(got, constant.expand_as(got))
        total = len(got) if routing.scale == "count" else 1.0
        if len(got):  # the first reader of an anchored routing has no sources
            torch.testing.assert_close(got.sum(0), torch.full_like(got[0], total))


def test_samples_at_a_folded_timestep_share_their_queries(monkeypatch):
    """Where no reader is folded, too; at another timestep each sample has its own."""
    model = perturbed(replace(SMALL, routing=RoutingConfig()))
    folded, _ = fold_routing(model, inputs(), tolerance=-1.0)
    x_t, t, y = inputs()[0]
    shapes = []
    tape = mixers.TorchTape

    def noted(queries: torch.Tensor, *args, **kwargs) -> TorchTape:
        shapes.append(tuple(queries.shape))
        return tape(queries, *args, **kwargs)

    monkeypatch.setattr(mixers, "TorchTape", noted)
    with torch.no_grad():
        torch.testing.assert_close(at(folded, x_t, t, y), at(model, x_t, t, y))
    shared, own = shapes
    assert shared[0] == model.routing.num_readers and own == (len(y), *shared)


def test_a_folded_reader_asks_nothing_of_its_sources(monkeypatch):
    model = perturbed(replace(SMALL, routing=RoutingConfig()))
    folded, _ = fold_routing(model, inputs(), tolerance=1e9)
    x_t, t, y = inputs()[0]

    def refuse(*_: object) -> None:
        raise AssertionError("a key was computed")

    monkeypatch.setattr("dar.history.inverse_rms", refuse)
    monkeypatch.setattr("dar.tape.inverse_rms", refuse)
    monkeypatch.setattr("dar.routing.weighers.route", refuse)
    at(folded, x_t, t, y)


def test_the_bound_holds():
    """The first folded reader's error, sample by sample and token by token, against its bound."""
    model = perturbed(replace(SMALL, routing=RoutingConfig(chunk_size=1)))
    x_t, t, y = inputs()[1]
    folded, found = fold_routing(model, [(x_t, t, y)], tolerance=1e9)
    with torch.no_grad(), capture(model) as record:
        at(model, x_t, t, y)
    with torch.no_grad(), capture(folded) as folded_record:
        at(folded, x_t, t, y)
    # Reader 2 is the first with a choice; what it reads from has not been touched by any fold.
    weights, means = record.stream.weights[1], folded_record.stream.weights[1]
    sources = torch.stack([record.embedding, record.writes[0]])
    deviation = (weights - means).abs().sum(0)
    error = (record.reads[1] - folded_record.reads[1]).norm(dim=-1)
    assert (error <= deviation * sources.norm(dim=-1).amax(0) * (1 + 1e-9)).all() and error.max() > 0
    assert found[0].deviations[1] == pytest.approx(float(deviation.mean()))


def test_only_readers_within_the_tolerance_are_folded():
    model = perturbed(replace(SMALL, routing=RoutingConfig()))
    _, (everything, _) = fold_routing(model, inputs(), tolerance=1e9)
    limit = sorted(everything.deviations)[4]
    folded, (found, _) = fold_routing(model, inputs(), tolerance=limit)
    assert found.num_folded == 5
    kept = [weights is not None for weights in folded.routing.folds[0].weights]
    assert kept == [deviation <= limit for deviation in everything.deviations]


def test_the_model_itself_is_not_touched_and_saving_forgets_folds(tmp_path):
    model = perturbed(replace(SMALL, routing=RoutingConfig()), torch.float32)
    wide = [(x_t.float(), t, y) for x_t, t, y in inputs()]
    folded, _ = fold_routing(model, wide, tolerance=1e9)
    assert model.routing.folds == []
    folded.save_pretrained(tmp_path)
    x_t, t, y = wide[0]
    assert torch.equal(at(SiT.from_pretrained(tmp_path), x_t, t, y), at(model, x_t, t, y))


def test_a_model_without_weights_over_depth_is_refused():
    with pytest.raises(ValueError, match="routing 'residual' has no weights over depth to fold"):
        fold_routing(perturbed(replace(SMALL, routing=RESIDUAL)), inputs())


@pytest.mark.parametrize("whole", [True, False], ids=["model in bfloat16", "autocast"])
def test_a_fold_is_recognised_in_low_precision(whole):
    model = perturbed(replace(SMALL, routing=RoutingConfig()), torch.float32)
    wide = [(x_t.float(), t, y) for x_t, t, y in inputs()]
    folded, _ = fold_routing(model, wide, tolerance=1e9)
    fold = folded.routing.folds[0]
    t = torch.full((4,), fold.t)
    if whole:
        folded = folded.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        assert fold.matches(folded.t_embedder(t.bfloat16() if whole else t))
        assert not fold.matches(folded.t_embedder(torch.full_like(t, 0.5).bfloat16() if whole else t + 0.25))
