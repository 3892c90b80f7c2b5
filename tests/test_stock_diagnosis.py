"""Streams of stock transformers along depth, against sums written out, zeroed weights, and a SiT that is the same."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dar
from dar.architectures import ARCHITECTURES, Architecture, StreamNorms, architecture_of
from dar.diagnostics import (
    View,
    chunk_from_profile,
    interpolated,
    measures_of,
    recorded_pass,
    removal_costs,
    sample_losses,
    source_similarity,
    symptoms,
    view_of,
    views_of,
)
from dar.diagnostics.depth import AXES
from distill.cli import main
from distill.conditions import Prompts
from distill.data.captions import CAPTIONS_FILE
from distill.data.latents import listing
from distill.diagnosis.images import balanced_examples, captioned_images, find_data
from distill.diagnosis.measuring import Design, diagnose_model
from distill.diagnosis.results import Diagnosis, ModelDiagnosis, Profile, WeightsOverDepth
from distill.errors import UserError
from distill.latents.space import LatentSpace
from distill.models import load_model, save_model
from distill.models.lora import add_adapters
from distill.models.stock import StockBackbone, write_reference
from distill.report.diagnosis import figures, findings
from distill.verbs.diagnose import diagnose, examples_of, load_subjects
from tests.stock_folders import PROMPTS, SHAPES, prompts_folder, stock_folder
from tests.test_attached import Written, moved
from tests.test_checkpoints import diffusers_model, exact_sinusoid
from tests.tiny_transformers import TINY, randomised

Batch = tuple[Tensor, Tensor, Tensor, Any]
COUNT = dar.RoutingConfig(scale="count", chunk_size=2)


def backbone(name: str, routing: dar.RoutingConfig | None = None, **options: Any) -> tuple[Any, Batch]:
    """A small model in float64, with queries away from zero if it has a routing, and x0, eps, t, y.

    Wan computes parts in float32 whatever it is in.
    """
    transformer, inputs = TINY[name]()
    dtype = torch.float32 if name == "wan" else torch.float64
    transformer = transformer.to(dtype)
    model = StockBackbone(transformer, Path(), SHAPES[name])
    told = (*model.stock.conditions, *model.stock.masks)
    y = {key: inputs[key] for key in told} if told else inputs["class_labels"]
    generator = torch.Generator().manual_seed(7)
    x0, eps = torch.randn(2, 2, *SHAPES[name], generator=generator, dtype=dtype)
    if routing is not None:
        moved(dar.attach_routing(transformer, routing, **options), 0.5)
    return model, (x0, eps, torch.tensor([0.3, 0.8], dtype=dtype), y)


def tolerance(x: Tensor) -> dict[str, Any]:
    return {"rtol": 1e-6, "atol": 1e-13} if x.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}


def rms(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1).sqrt()


# A sum of sublayers, written out


class Called(nn.Module):
    """A model of one stream, whose samples (B, C, H, W) are tokens (B, C, H W) of it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        return self.transformer(x_t.flatten(2), t).view(x_t.shape)


def sums(model: Written, z: Tensor, t: Tensor, removed: int = 0) -> tuple[list[Tensor], Tensor]:
    """z_0, z_1, .. of the plain stream, and the output."""
    stream, e_t = [z], model.time(t[:, None])[:, None]
    for number, (norm, layer) in enumerate(zip(model.norms, model.layers, strict=False), start=1):
        z = z + (number != removed) * torch.tanh(layer(norm(z) + e_t))
        stream.append(z)
    return stream, model.norms[-1](z)


@pytest.mark.parametrize("sublayers", [("block",), ("attn", "mlp"), ("attn", "cross", "mlp")])
@pytest.mark.parametrize("routing", [None, COUNT, dar.RoutingConfig(scale="count", chunk_size=1, final=False)])
def test_measures_of_a_plain_sum(monkeypatch: pytest.MonkeyPatch, sublayers: tuple[str, ...], routing: Any) -> None:
    """Without routing, and with one whose queries are zero, routed head or not."""
    depth = 6
    norms = StreamNorms(tuple(f"norms.{i}" for i in range(depth)), f"norms.{depth}", sublayers=sublayers)
    monkeypatch.setitem(ARCHITECTURES, "Written", lambda _: Architecture({"z": norms}, "time"))
    torch.manual_seed(0)
    written = Written(8, depth).double()
    x0, eps = torch.randn(2, 3, 5, 2, 4, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    expected, output = sums(written, interpolated(x0, eps, t).flatten(2), t)
    loss = (output.view(x0.shape) - (eps - x0)).square().flatten(1).mean(1)
    gradients = torch.autograd.grad(loss.sum(), expected[1:], retain_graph=True)
    if routing is not None:
        dar.attach_routing(written, routing)
    with views_of(Called(written)) as views:
        (view,) = views
        run = recorded_pass(view, x0, eps, t, None)
        costs = removal_costs(view, x0, eps, t, None)
        found = {m.name: m.compute(run) for m in measures_of(view)}
        alike = source_similarity(view, interpolated(x0, eps, t), t, None)
        proposal = chunk_from_profile(view, (interpolated(x0, eps, t), t, None))
        means = symptoms(view, x0, eps, t, None)
    assert hasattr(written, "routing") == (routing is not None)
    per_block = len(sublayers)
    writes = [after - before for before, after in pairwise(expected)]
    hidden, ends = expected[::per_block], gradients[per_block - 1 :: per_block]
    close = torch.testing.assert_close
    close(run.loss, loss)
    close(found["hidden_rms"], torch.stack([rms(z) for z in hidden]))
    close(found["source_rms"], torch.stack([rms(v) for v in (expected[0], *writes)]))
    close(found["gradient_rms"], torch.stack([rms(g) for g in ends]))
    close(means.gradient_rms, found["gradient_rms"].mean(1))
    turns = [nn.functional.cosine_similarity(a, b, dim=-1).mean(1) for a, b in pairwise(hidden)]
    close(found["neighbour_cosine"], torch.stack(turns))
    close(alike[1, 4], nn.functional.cosine_similarity(writes[1], writes[4], dim=-1).mean())
    assert sum(proposal.lengths) == depth
    for number in range(1, depth + 1):
        without = sums(written if routing is None else dar.detach_routing(copy.deepcopy(written)),
                       interpolated(x0, eps, t).flatten(2), t, number)[1]  # fmt: skip
        close(costs[number - 1], (without.view(x0.shape) - (eps - x0)).square().flatten(1).mean(1) - loss)
    assert ("weight_entropy" in found) == (routing is not None)
    for axis, of in AXES.items():
        places = of(view)
        shown = {"hidden": "hidden_rms", "source": "source_rms", "block": "gradient_rms", "pair": "neighbour_cosine"}
        assert axis not in shown or len(places) == len(found[shown[axis]]), axis
    assert AXES["sublayer"](view)[-1].position == depth / per_block
    assert [place.name for place in AXES["sublayer"](view)][:per_block] == [f"{name} 1" for name in sublayers]


# Stock transformers


def blocks_of(model: Any) -> list[tuple[str, int, Tensor]]:
    """Register hooks that note what each block hands on: (stream, number of its block from 1, z)."""
    noted: list[tuple[str, int, Tensor]] = []
    architecture = architecture_of(model.transformer)
    counts: dict[str, int] = {}

    def note(carried: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            parts: dict[str, list[Tensor]] = {}
            for (_, stream), z in zip(carried, outputs, strict=True):
                parts.setdefault(stream, []).append(z)
            for stream, zs in parts.items():
                counts[stream] = counts.get(stream, 0) + 1
                noted.extend((stream, counts[stream], z) for z in zs if z is not None)

        return hook

    for name, carried in architecture.blocks.items():
        model.transformer.get_submodule(name).register_forward_hook(note(carried))
    return noted


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "flux", "flux2", "wan", "dit"])
def test_hidden_states_and_gradients_are_those_at_the_ends_of_blocks(name: str) -> None:
    """Of the stock model, whose blocks hand on z_k: there dL/dv = dL/dz_k."""
    model, batch = backbone(name)
    watched = copy.deepcopy(model)
    noted = blocks_of(watched)
    loss = sample_losses(watched, *batch)
    gradients = torch.autograd.grad(loss.sum(), [z for *_, z in noted], allow_unused=True)
    with views_of(model) as views:
        for view in views:
            run = recorded_pass(view, *batch)
            torch.testing.assert_close(run.loss, loss.detach())
            assert len(run.gradients) == view.num_blocks == len(run.record.hidden) - 1
            assert len(run.record.writes) == view.num_sublayers == len(view.sublayer_names())
            for block, (hidden, gradient) in enumerate(zip(run.record.hidden[1:], run.gradients, strict=True), start=1):
                rows = [i for i, (stream, number, _) in enumerate(noted) if (stream, number) == (view.stream, block)]
                parts = [gradients[i] for i in rows]
                expected = [torch.zeros_like(noted[i][2]) if g is None else g for i, g in zip(rows, parts, strict=True)]
                torch.testing.assert_close(gradient, torch.cat(expected, 1), **tolerance(gradient))
                z = torch.cat([noted[i][2] for i in rows], 1)
                is_head = block == view.num_blocks and view.stream == "joint"  # whose head is handed image tokens alone
                num = SHAPES[name][1] * SHAPES[name][2] // (1 if name == "flux2" else 4) if is_head else z.shape[1]
                torch.testing.assert_close(hidden[:, -num:], z[:, -num:])
    assert model.routing is None
    assert not any("Reader" in type(hook).__name__ for m in model.modules() for hook in m._forward_pre_hooks.values())


ZEROED = [
    ("sd3", "image", "attn 2", "transformer_blocks.1.attn.to_out.0"),
    ("sd3", "image", "mlp 4", "transformer_blocks.3.ff.net.2"),
    ("sd3", "text", "attn 1", "transformer_blocks.0.attn.to_add_out"),
    ("sd3", "text", "mlp 3", "transformer_blocks.2.ff_context.net.2"),
    ("qwen_image", "text", "mlp 2", "transformer_blocks.1.txt_mlp.net.2"),
    ("flux", "image", "attn 1", "transformer_blocks.0.attn.to_out.0"),
    ("flux", "image", "mlp 2", "transformer_blocks.1.ff.net.2"),
    ("flux", "text", "attn 2", "transformer_blocks.1.attn.to_add_out"),
    ("flux", "joint", "block 2", "single_transformer_blocks.1.proj_out"),
    ("flux2", "text", "mlp 1", "transformer_blocks.0.ff_context.linear_out"),
    ("flux2", "image", "mlp 2", "transformer_blocks.1.ff.linear_out"),
    ("wan", "video", "cross 2", "blocks.1.attn2.to_out.0"),
    ("wan", "video", "mlp 3", "blocks.2.ffn.net.2"),
    ("pixart", "image", "mlp 3", "transformer_blocks.2.ff.net.2"),
    ("dit", "image", "attn 3", "transformer_blocks.2.attn1.to_out.0"),
]


@pytest.mark.parametrize("kind", ["plain", "differences", "written", "unrouted head"])
@pytest.mark.parametrize(("name", "stream", "sublayer", "module"), ZEROED)
def test_removal_is_what_zeros_in_the_last_layer_do(
    name: str, stream: str, sublayer: str, module: str, kind: str
) -> None:
    if name == "pixart" and kind == "written":
        pytest.skip("a sublayer of it reads the stream past the norms")
    routing = None if kind == "plain" else dar.RoutingConfig(scale="count", chunk_size=2, final=kind != "unrouted head")
    model, batch = backbone(name, routing, **({"sources": kind} if kind == "written" else {}))
    with views_of(model) as views:
        view = next(view for view in views if view.stream == stream)
        number = view.sublayer_names().index(sublayer)
        view = View(model, stream, view.routing, view.readers, view.sublayers, number + 1, view.parameters)
        cost = removal_costs(view, *batch)[number]
    intact = sample_losses(model, *batch)
    with torch.no_grad():
        for parameter in model.transformer.get_submodule(module).parameters():
            parameter.zero_()
        expected = sample_losses(model, *batch) - intact
    assert (cost.abs() > 1e-10).all()
    torch.testing.assert_close(cost, expected, **tolerance(cost))


@pytest.mark.parametrize(
    ("name", "sources"),
    [("sd3", "differences"), ("sd3", "written"), ("flux", "differences"), ("qwen_image", "written")],
)
def test_zero_queries_give_the_numbers_of_the_stock_model(name: str, sources: str) -> None:
    model, batch = backbone(name)
    found = []
    for attach in (False, True):
        if attach:
            dar.attach_routing(model.transformer, COUNT, sources=sources)
        with views_of(model) as views:
            for view in views:
                run = recorded_pass(view, *batch)
                measured = [m.compute(run) for m in measures_of(view) if not m.needs_weights]
                found.append([run.loss, removal_costs(view, *batch), *measured])
    half = len(found) // 2
    for plain, routed in zip(found[:half], found[half:], strict=True):
        for a, b in zip(plain, routed, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-12)


def test_a_sit_and_a_stock_dit_that_are_one_have_one_diagnosis(tmp_path: Path) -> None:
    stock = diffusers_model()
    stock.save_pretrained(tmp_path)
    routing = dar.RoutingConfig(scale="count", chunk_size=3)
    sit = moved(dar.replace_routing(dar.load_pretrained(tmp_path), routing)).double()
    dar.attach_routing(stock, routing).routing.streams["image"].load_state_dict(sit.routing.state_dict())
    model = StockBackbone(exact_sinusoid(stock), tmp_path)
    x0, eps = torch.randn(2, 3, *model.sample_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    batch = (x0, eps, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), torch.tensor([0, 3, 1]))
    with views_of(model) as (view,):
        runs = recorded_pass(view_of(sit), *batch), recorded_pass(view, *batch)
        assert [r.name for r in runs[0].view.readers] == [r.name for r in view.readers]
        for measure in measures_of(sit):
            places = AXES[measure.axis]
            assert places(runs[0].view) == places(view)
            torch.testing.assert_close(measure.compute(runs[1]), measure.compute(runs[0]), rtol=1e-6, atol=1e-9)
        for a, b in zip(runs[1].weights, runs[0].weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(removal_costs(view, *batch), removal_costs(sit, *batch), rtol=1e-5, atol=1e-8)


def test_half_precision_keeps_small_gradients() -> None:
    """The mean over the values of a large picture makes them so."""
    diffusers = pytest.importorskip("diffusers")
    transformer = randomised(
        diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=64,
            patch_size=2, num_embeds_ada_norm=10,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in transformer.proj_out_2.parameters():
            parameter *= 1e-4
    model = StockBackbone(transformer, Path())
    x0, eps = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = (x0, eps, torch.tensor([0.4]), torch.tensor([3]))
    found = {}
    for dtype in (torch.float32, torch.float16):
        with views_of(model.to(dtype)) as (view,):
            found[dtype] = symptoms(view, *batch).gradient_rms
    assert found[torch.float32].max() < 1e-7
    torch.testing.assert_close(found[torch.float16], found[torch.float32], rtol=0.03, atol=0)


def test_adapters_of_peft_and_their_copy_of_the_routing_are_looked_into() -> None:
    pytest.importorskip("peft")
    model, batch = backbone("sd3", COUNT)
    with views_of(model) as views:
        before = [recorded_pass(view, *batch) for view in views]
    add_adapters(model, 2, base="x", field="roles.trainable")
    model.double()
    with views_of(model) as views:
        for view, expected in zip(views, before, strict=True):
            run = recorded_pass(view, *batch)
            torch.testing.assert_close(run.gradients[0], expected.gradients[0])
    for name, parameter in model.named_parameters():
        if "routing" in name and "modules_to_save" in name:
            parameter.data.normal_()
    with views_of(model) as views:
        assert not torch.allclose(recorded_pass(views[0], *batch).weights[3], before[0].weights[3])


# The design


def test_examples_of_prompts_and_images_with_captions(tmp_path: Path) -> None:
    prompts = Prompts.load(prompts_folder(tmp_path / "prompts", "WanTransformer3DModel", {"encoder_hidden_states": 12}))
    y = balanced_examples(8, prompts)
    assert y["index"].tolist() == [0, 1, 2, 0, 1, 2] and y["encoder_hidden_states"].shape == (6, 5, 12)
    with pytest.raises(UserError, match="at least 6, for 3 prompts; got 5"):
        balanced_examples(5, prompts)
    folder = tmp_path / "latents" / "vae-sd"
    folder.mkdir(parents=True)
    for i in range(5):  # each sample of one value, its number
        np.save(folder / f"{i}.npy", np.concatenate([np.full((4, 8, 8), i), np.zeros((4, 8, 8))]).astype(np.float32))
    (folder / "dataset.json").write_text(listing([(f"{i}.npy", 0) for i in range(5)], LatentSpace(scale=1.0)))
    captions = [2, 0, 2, 1, 0]
    (tmp_path / "latents" / CAPTIONS_FILE).write_text(json.dumps([PROMPTS[i] for i in captions]))
    source = find_data(f"latents:{tmp_path / 'latents'}", (4, 8, 8), prompts)
    assert source is not None
    images, y, groups = examples_of(prompts, source, 4, seed=3)
    assert images is not None and images.shape == (4, 4, 8, 8) and groups.tolist() == [0] * 4
    numbers = images.mean((1, 2, 3)).round().long().tolist()
    assert len(set(numbers)) == 4 and y["index"].tolist() == [captions[number] for number in numbers]
    with pytest.raises(UserError, match=r"--num-images must be between 4 and 5, the samples of latents:.*; got 6"):
        captioned_images(source, 6, seed=3)
    assert examples_of(prompts, None, 8, seed=3)[2].tolist() == [0, 1, 2, 0, 1, 2]


def test_variance_of_images_that_are_no_groups() -> None:
    routing = WeightsOverDepth(["r"], [["a", "b"]], [], np.array([[1.0, 0, 2, 1, 0]]))
    model = dataclasses.replace(made("m", ""), routing=routing)
    assert "the image 50 %; the rest" in findings.of_variance(model, 5, 1, "prompt")
    assert "the image within its prompt 50 %" in findings.of_variance(model, 8, 2, "prompt")


def made(name: str, stream: str) -> ModelDiagnosis:
    return ModelDiagnosis(name, name, "", 3, 0, {}, None, None, np.eye(6), stream)  # type: ignore[arg-type]


def test_a_stream_is_compared_with_the_same_of_the_reference() -> None:
    names = {"a, image stream": "image", "a, text stream": "text", "b, text stream": "text", "c": ""}
    models = [made(name, stream) for name, stream in names.items()]
    diagnosis = Diagnosis(models, np.zeros(1), 4, [0], "", 0, reference="a")
    assert [diagnosis.is_reference(model) for model in models] == [True, True, False, False]
    assert [diagnosis.reference_of(model) for model in models] == [None, None, models[1], None]
    assert [model.model for model in models] == ["a", "a", "b", "c"]


def test_a_line_for_each_kind_of_sublayer() -> None:
    names = [f"{kind} {block}" for block in (1, 2) for kind in ("attn", "cross", "mlp")]
    values = np.arange(1.0, 8)[None, :, None] * np.array([1.0, 1.1])
    profile = Profile("x", "", "", False, "source", ["embedding", *names], np.arange(7) / 3, values)
    model = dataclasses.replace(made("m", ""), profiles={"x": profile}, sublayers=("attn", "cross", "mlp"))
    mean = figures.depth_plot(Diagnosis([model], np.array([0.5]), 2, [0], "", 0), "x").axes[0]
    found = [np.asarray(line.get_ydata()) / 1.05 for line in mean.lines]
    for line, expected in zip(found, ([1], [4, 7], [3, 6], [2, 5]), strict=True):
        np.testing.assert_allclose(line, expected)


# The verb


@pytest.mark.usefixtures("rendered")
def test_two_streams_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A routed Stable Diffusion 3, on images that it draws itself."""
    monkeypatch.setattr("distill.verbs.diagnose.NUM_T", 3)
    transformer, prompts = stock_folder("sd3", tmp_path)
    write_reference(tmp_path / "plain", transformer, SHAPES["sd3"], None)
    model: Any = load_model(tmp_path / "plain", str(prompts))
    moved(dar.attach_routing(model.transformer, COUNT))
    save_model(model, tmp_path / "routed")
    argv = ["diagnose", str(tmp_path / "routed"), "--num-images", "6", "--batch-size", "4"]
    assert main([*argv, "--output", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "diagnosis.html").read_text()
    read = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    image, text = read["models"]
    assert [image["name"], text["name"]] == ["routed, image stream", "routed, text stream"]
    assert [len(image["similarity"]), len(text["similarity"])] == [8, 6]
    assert text["profiles"]["weight_entropy"]["places"][-1] == "attn 4"
    assert image["profiles"]["loss"]["mean"] == text["profiles"]["loss"]["mean"]
    assert image["profiles"]["hidden_rms"]["mean"] != text["profiles"]["hidden_rms"]["mean"]
    assert read["noun"] == "prompt" and read["class_names"] == list(PROMPTS) and read["num_groups"] == 3
    assert "<h1>Along depth and timestep: routed</h1>" in page
    for said in ("6 images of 3 prompts", "<strong>routed, text stream.</strong>", "the image within its prompt"):
        assert said in page
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.png")}
    assert "importance.png" in pictures and pictures["weights-image.png"] != pictures["weights-text.png"]


def test_the_stand_in_is_no_part_of_a_plain_model(tmp_path: Path) -> None:
    transformer, prompts = stock_folder("sd3", tmp_path)
    write_reference(tmp_path / "plain", transformer, SHAPES["sd3"], None)
    model: Any = load_model(tmp_path / "plain", str(prompts))
    y = model.condition.balanced(6)
    design = Design.of(torch.randn(6, *SHAPES["sd3"]), y, torch.tensor([0.5]), 0, y["index"], 4)
    with views_of(model) as views:
        found = diagnose_model("plain", "plain", views[1], design, lambda _: None, "text")
    assert found.name == "plain, text stream" and found.description == "3 blocks x 16, routing residual"
    assert found.routing is None and "weight_entropy" not in found.profiles
    assert found.num_parameters == sum(p.numel() for p in model.parameters())


def test_too_many_streams_and_a_model_that_cannot_be_looked_into(tmp_path: Path) -> None:
    transformer, prompts = stock_folder("flux", tmp_path)
    folders = [str(tmp_path / name) for name in "abc"]
    for folder in folders:
        write_reference(Path(folder), transformer, SHAPES["flux"], None)
    cpu = torch.device("cpu")
    assert [s.streams for s in load_subjects(folders[:2], cpu, str(prompts))] == [["image", "text", "joint"]] * 2
    with pytest.raises(UserError, match="the models have 9 streams; at most 6 can be told apart"):
        load_subjects(folders, cpu, str(prompts))
    with pytest.raises(UserError, match="nothing says what StockBackbone is conditioned on"):
        diagnose([folders[0]], output=tmp_path / "out")
    with pytest.raises(ValueError, match="a Linear cannot be looked into; a SiT and transformers of diffusers can"):
        views_of(nn.Linear(2, 2)).__enter__()


def test_a_stream_shallower_than_a_block_is_left_out() -> None:
    model, _ = backbone("sd3")
    model.transformer.transformer_blocks = model.transformer.transformer_blocks[-1:]
    with views_of(model) as views:
        assert [view.stream for view in views] == ["image"]
