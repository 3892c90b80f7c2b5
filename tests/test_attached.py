"""Depth routing attached to stock transformers: exact at the start, right when routed, gone without a trace."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dar
from dar.architectures import ARCHITECTURES
from dar.attached import attached_weights
from dar.routing import build_routing
from dar.stream_passes import Differences
from tests.test_checkpoints import check_rows, diffusers_model, diffusers_velocity, exact_sinusoid
from tests.tiny_transformers import TINY, in_bfloat16, sd3

COUNT = dar.RoutingConfig(scale="count", chunk_size=2)
WRITTEN = [name for name in TINY if name != "pixart"]


def velocity(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs)[0]


def moved(model: Any, std: float = 1.0) -> Any:
    """Queries away from zero."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.routing.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return model


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    velocity(model, inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Over the largest gradient of all: a bias of keys has none but rounding."""
    assert found.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    return max(float((found[name] - g).abs().max()) for name, g in expected.items()) / scale


@pytest.mark.parametrize("query", ["static", "static_t", "dynamic"])
@pytest.mark.parametrize("name", TINY)
def test_zero_queries_give_the_stock_model_to_the_bit(name: str, query: str) -> None:
    model, inputs = TINY[name]()
    stock = velocity(model, inputs)
    dar.attach_routing(model, dar.RoutingConfig(scale="count", chunk_size=2, query=query))
    assert torch.equal(velocity(model, inputs), stock)
    assert not torch.equal(velocity(moved(model), inputs), stock)
    assert torch.equal(velocity(dar.detach_routing(model), inputs), stock)


@pytest.mark.parametrize("name", TINY)
def test_zero_queries_give_the_stock_model_to_the_bit_in_bfloat16(name: str) -> None:
    model, inputs = in_bfloat16(*TINY[name]())
    stock = velocity(model, inputs)
    assert torch.equal(velocity(dar.attach_routing(model, COUNT), inputs), stock)


def test_zero_queries_give_the_stock_model_to_the_bit_by_the_kernels() -> None:
    for narrow in (lambda *case: case, in_bfloat16):
        model, inputs = narrow(*sd3(num_layers=2))
        inputs = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        stock = velocity(model, inputs)
        dar.attach_routing(model, COUNT)
        for routing in model.routing.streams.values():
            routing.backend = "triton"
        assert torch.equal(velocity(model, inputs), stock)


@pytest.mark.parametrize("change", [{"chunk_size": 1}, {"anchor": True}, {"final": False}, {"kind": "densenet"}])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_zero_queries_of_any_routing_that_starts_as_the_stream(name: str, change: dict[str, Any]) -> None:
    model, inputs = TINY[name]()
    stock = velocity(model, inputs)
    dar.attach_routing(model, dar.RoutingConfig(**{"scale": "count", "chunk_size": 2, **change}))
    assert torch.equal(velocity(model, inputs), stock)


@pytest.mark.parametrize("name", WRITTEN)
def test_both_kinds_of_sources_route_alike(name: str) -> None:
    """In float32, where differences are as good as what was written."""
    model, inputs = TINY[name]()
    stock = velocity(model, inputs)
    differences = dar.attach_routing(copy.deepcopy(model), COUNT)
    written = dar.attach_routing(model, COUNT, sources="written")
    torch.testing.assert_close(velocity(written, inputs), stock, rtol=0, atol=1e-6 * stock.abs().max().item())
    moved(differences), moved(written)
    expected = velocity(differences, inputs)
    torch.testing.assert_close(velocity(written, inputs), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert largest_error(gradients(written, inputs), gradients(differences, inputs)) < 1e-5


def test_what_is_written_is_truer_than_differences_in_bfloat16() -> None:
    model, inputs = TINY["sd3"]()
    for module in model.modules():  # sublayers that write little, as in a deep model
        if isinstance(module, nn.Linear):
            module.weight.data *= 0.3
    exact = velocity(moved(dar.attach_routing(copy.deepcopy(model), COUNT), 4.0), inputs)
    errors = {}
    for sources in ("differences", "written"):
        narrow, narrow_inputs = in_bfloat16(copy.deepcopy(model), inputs)
        dar.attach_routing(narrow, COUNT, sources=sources)
        errors[sources] = float((velocity(moved(narrow, 4.0), narrow_inputs) - exact).norm() / exact.norm())
    assert errors["written"] < 0.7 * errors["differences"]


class Written(nn.Module):
    """What a norm read and what was added to the stream after it, of a plain sum of sublayers."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.config = type("Config", (), {"num_attention_heads": 1, "attention_head_dim": dim})()
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth + 1))
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.time = nn.Linear(1, dim)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        e_t = self.time(t[:, None])
        for norm, layer in zip(self.norms, self.layers, strict=False):
            z = z + torch.tanh(layer(norm(z) + e_t[:, None]))
        return self.norms[-1](z)


@pytest.fixture
def plain_sum(monkeypatch: pytest.MonkeyPatch) -> Any:
    def describe(model: Any) -> dar.architectures.Architecture:
        norms = dar.architectures.StreamNorms(("norms.0", "norms.1", "norms.2"), "norms.3")
        return dar.architectures.Architecture({"z": norms}, "time")

    monkeypatch.setitem(ARCHITECTURES, "Written", describe)
    torch.manual_seed(0)
    return Written(8, 3).double()


def test_equation_5_on_a_plain_sum_of_sublayers(plain_sum: Any) -> None:
    """h_l = sum_i a_i v_i with a = N softmax(<w_l + g_l e(t), RMSNorm(v_i)> / sqrt(d)), written out."""
    dense = dar.RoutingConfig(scale="count", chunk_size=1)
    model = moved(dar.attach_routing(plain_sum, dense)).double()
    z, t = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64)
    queries = model.routing.streams["z"].queries
    e_t = model.time(t[:, None])
    sources = [z]
    for reader in range(4):
        q = queries.weight[reader] + queries.t_gate[reader] * e_t
        keys = [v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() for v in sources]
        logits = torch.stack([(k * q[:, None]).sum(-1) / 8**0.5 for k in keys])
        weights = len(sources) * logits.softmax(0)
        h = (weights[..., None] * torch.stack(sources)).sum(0)
        if reader < 3:
            sources.append(torch.tanh(model.layers[reader](model.norms[reader].__class__.forward(
                model.norms[reader], h) + e_t[:, None])))  # fmt: skip
    expected = nn.LayerNorm.forward(model.norms[3], h)
    torch.testing.assert_close(model(z, t), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("final", [True, False])
def test_what_does_not_start_as_the_stream_mixes_its_sources_alone(plain_sum: Any, final: bool) -> None:
    """The last of a chunk stands for it, so that sources do not add up to the stream; an unrouted head reads that."""
    model = dar.attach_routing(plain_sum, dar.RoutingConfig(chunk_size=2, summary="last", final=final))
    z, t = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64)
    e_t, v = model.time(t[:, None])[:, None], [z]
    for norm, layer, read in zip(model.norms, model.layers, ([0], [0, 1], [0, 2]), strict=False):
        h = torch.stack([v[i] for i in read]).mean(0)
        v.append(torch.tanh(layer(nn.LayerNorm.forward(norm, h) + e_t)))
    head = (v[0] + v[2] + v[3]) / 3 if final else v[0] + v[1] + v[2] + v[3]
    torch.testing.assert_close(model(z, t), nn.LayerNorm.forward(model.norms[3], head), rtol=1e-10, atol=1e-10)


def test_an_unrouted_head_is_handed_the_stream_to_the_bit() -> None:
    """By whoever holds it, rounded as it was; with the gradient of the sum."""
    stream = build_routing(dar.RoutingConfig(chunk_size=1, final=False), 1, 8).open(
        torch.randn(2, 5, 8), torch.randn(2, 8)
    )
    stream.read()
    written, held = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 8)
    stream.write(written)
    read: Any = stream.read
    assert torch.equal(read(held), held)
    assert torch.equal(torch.autograd.grad(read(held).sum(), written)[0], torch.ones(2, 5, 8))


@pytest.mark.parametrize("query", ["static_t", "dynamic"])
def test_gradients_of_queries_by_finite_differences(plain_sum: Any, query: str) -> None:
    model = moved(dar.attach_routing(plain_sum, dar.RoutingConfig(scale="count", chunk_size=2, query=query))).double()
    z, t = torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([0.2, 0.7], dtype=torch.float64)
    weight = torch.randn(2, 5, 8, dtype=torch.float64)

    def loss() -> Tensor:
        return (model(z, t) * weight).sum()

    loss().backward()
    for parameter in model.routing.parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            values = []
            for step in (1e-5, -1e-5):
                parameter += step * direction
                values.append(float(loss()))
                parameter -= step * direction
        assert parameter.grad is not None
        slope = float((parameter.grad * direction).sum())
        assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


@pytest.mark.parametrize("sources", ["differences", "written"])
@pytest.mark.parametrize("name", ["sd3", "qwen_image", "flux", "flux2", "wan", "dit"])
def test_gradient_checkpointing_with_another_pass_in_between(name: str, sources: str) -> None:
    model, inputs = TINY[name]()
    moved(dar.attach_routing(model, COUNT, sources=sources))
    expected = gradients(model, inputs)
    assert all(p.grad is not None for p in model.routing.parameters())
    model.enable_gradient_checkpointing()
    model.zero_grad()
    loss = velocity(model, inputs).square().sum()
    with torch.no_grad():  # of the same model at other inputs, before the first is differentiated
        velocity(model, {**inputs, "hidden_states": -inputs["hidden_states"]})
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert largest_error(found, expected) < 1e-5


def test_checkpointing_from_outside_is_refused() -> None:
    model, inputs = TINY["dit"]()
    dar.attach_routing(model, COUNT)
    with pytest.raises(RuntimeError, match="outside of the model's own forward pass"):
        model.transformer_blocks[0](inputs["hidden_states"].flatten(2), timestep=inputs["timestep"])


def test_a_copy_has_a_routing_of_its_own() -> None:
    model, inputs = TINY["sd3"]()
    twin = copy.deepcopy(dar.attach_routing(model, COUNT))
    before = velocity(model, inputs)
    moved(twin)
    assert torch.equal(velocity(model, inputs), before)
    assert not torch.equal(velocity(twin, inputs), before)


def test_adapters_of_peft_train_the_routing_they_copied() -> None:
    peft = pytest.importorskip("peft")
    model, inputs = TINY["sd3"]()
    stock = velocity(dar.attach_routing(model, COUNT), inputs)
    config = peft.LoraConfig(r=4, target_modules=r".*attn\.to_[qkv]", modules_to_save=["routing"])
    peft.inject_adapter_in_model(config, model)
    assert torch.equal(velocity(model, inputs), stock)
    for name, parameter in model.named_parameters():
        if "routing" in name and "modules_to_save" in name:
            parameter.data.normal_()
    assert not torch.equal(velocity(model, inputs), stock)
    found = gradients(model, inputs)
    assert any("lora_B" in name for name in found) and any("modules_to_save" in name for name in found)
    assert not any("original_module" in name for name in found)


def test_compiled_to_one_graph() -> None:
    model, inputs = sd3(num_layers=2)
    moved(dar.attach_routing(model, COUNT))
    expected = velocity(model, inputs)
    torch._dynamo.reset()
    found = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_routed_sit_and_a_stock_dit_with_attached_routing_are_one(tmp_path: Path) -> None:
    """The same weights, through the conversion of a plain checkpoint; the same queries."""
    stock = diffusers_model()
    stock.save_pretrained(tmp_path)
    routing = dar.RoutingConfig(scale="count", chunk_size=3)
    sit = dar.replace_routing(dar.load_pretrained(tmp_path), routing)
    generator = torch.Generator().manual_seed(4)
    for parameter in sit.routing.parameters():
        parameter.data.normal_(generator=generator)
    dar.attach_routing(stock, routing).routing.streams["image"].load_state_dict(sit.routing.state_dict())
    check_rows(sit, diffusers_velocity(exact_sinusoid(stock)))


def test_weights_of_every_stream(tmp_path: Path) -> None:
    model, inputs = TINY["qwen_image"]()
    moved(dar.attach_routing(model, COUNT))
    weights = attached_weights(model, **inputs)
    assert {name: len(readers) for name, readers in weights.items()} == {"image": 7, "text": 5}
    for readers in weights.values():
        for reader in readers:
            torch.testing.assert_close(reader.sum(0), torch.full_like(reader[0], len(reader)), rtol=1e-5, atol=0)
    assert model.routing.kept_weights is None


# On disk


def test_saved_beside_the_model_and_loaded_onto_a_stock_one(tmp_path: Path) -> None:
    model, inputs = TINY["sd3"]()
    moved(dar.attach_routing(model, COUNT, sources="written"))
    expected = velocity(model, inputs)
    with dar.stock_weights(model):
        model.save_pretrained(tmp_path)
    dar.save_routing(model, tmp_path)
    stock, incompatible = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(incompatible.values())
    assert torch.equal(velocity(dar.load_routing(stock.eval(), tmp_path), inputs), expected)
    assert stock.routing.sources == "written"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "routing.json").unlink(), "holds no routing.json"),
        (lambda folder: (folder / "routing.safetensors").unlink(), "holds no routing.safetensors"),
        (lambda folder: (folder / "routing.safetensors").write_bytes(b"no"), "damaged"),
        (lambda folder: (folder / "routing.json").write_text("{}"), "must hold architecture, routing, sources"),
        (lambda folder: edit(folder, architecture="Other"), "routing of a Other; this is a SD3Transformer2DModel"),
        (lambda folder: edit(folder, sources="x"), "sources must be one of differences, written; got 'x'"),
        (lambda folder: edit(folder, routing={"kind": "x"}), "routing.kind must be one of"),
        (lambda folder: edit(folder, routing={"depth": 3}), "unexpected keyword argument 'depth'"),
        (lambda folder: edit(folder, routing={"query": "static"}), "is of another model: streams.image.queries.t_gate"),
    ],
)
def test_folders_that_do_not_fit(tmp_path: Path, damage: Any, message: str) -> None:
    model, _ = TINY["sd3"]()
    dar.save_routing(dar.attach_routing(model), tmp_path)
    dar.detach_routing(model)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        dar.load_routing(model, tmp_path)
    assert not hasattr(model, "routing")


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "routing.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_bad_input() -> None:
    model, _ = TINY["pixart"]()
    with pytest.raises(ValueError, match="sources = written is not for PixArtTransformer2DModel"):
        dar.attach_routing(model, sources="written")
    with pytest.raises(ValueError, match="sources must be one of differences, written; got 'all'"):
        dar.attach_routing(model, sources="all")
    with pytest.raises(ValueError, match="has no attached routing"):
        dar.detach_routing(model)
    with pytest.raises(ValueError, match="weights over depth"):
        dar.attach_routing(model, dar.RoutingConfig(kind="residual"))
    dar.attach_routing(model)
    with pytest.raises(ValueError, match="has a routing already"):
        dar.attach_routing(model)
    with pytest.raises(ValueError, match="'WanTransformer3DModel' is registered twice"):
        dar.architectures.register_architecture("WanTransformer3DModel")(lambda model: model)
    unknown = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"Sequential is no known architecture \(.*\); its norms are 0"):
        dar.attach_routing(unknown)


def test_the_first_reader_has_all_of_one_source() -> None:
    routing: Any = None  # which is asked from the second reader on
    stream = Differences(routing, lambda: torch.zeros(()), taped=False)
    assert stream.weights == []
    z = torch.randn(2, 3, 4)
    assert stream.read(z) is z
    (weights,) = stream.weights
    assert torch.equal(weights, torch.ones(1, 2, 3))
