"""SiT and its routing slot: against a SiT written out, and what survives a folder on disk."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dar import PRESETS, RoutingConfig, SiT, SiTConfig, preset
from dar.embeddings import sincos_positions

RESIDUAL = RoutingConfig(kind="residual")
SMALL = SiTConfig(
    input_size=4,
    patch_size=2,
    in_channels=3,
    hidden_size=16,
    depth=4,
    num_heads=2,
    num_classes=5,
    mlp_ratio=2.0,
    routing=RESIDUAL,
)

SMALL_DAR = replace(SMALL, routing=RoutingConfig())


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(config: SiTConfig, dtype=torch.float64) -> Any:
    """The same weights at every call, none of them zero, gates included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiT(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, dtype=dtype))
    return model


def inputs(config: SiTConfig, batch: int = 3, dtype=torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, config.in_channels, config.input_size, config.input_size)
    x_t = torch.randn(shape, generator=generator(1), dtype=dtype)
    t = torch.linspace(0, 1, batch, dtype=dtype)
    return x_t, t, torch.arange(batch) * 2 % (config.num_classes + 1)


def stock_sit(w: dict[str, Tensor], config: SiTConfig, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """SiT (arXiv:2401.08740) from its state dict, by einsum and loops; shares no code with the model."""
    p, d, grid = config.patch_size, config.hidden_size, config.input_size // config.patch_size
    dim_head = d // config.num_heads

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    tokens = [
        torch.einsum("bcij,dcij->bd", x_t[:, :, r * p : r * p + p, s * p : s * p + p], w["x_embedder.proj.weight"])
        for r in range(grid)
        for s in range(grid)
    ]
    x = torch.stack(tokens, dim=1) + w["x_embedder.proj.bias"] + w["pos_embed"]
    angles = t[:, None] * torch.tensor([math.exp(-math.log(1e4) * i / 128) for i in range(128)], dtype=t.dtype)
    e = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], 1))))
    c = silu(e + w["y_embedder.embedding_table.weight"][y])
    for i in range(config.depth):
        block = f"blocks.{i}"
        modulation = linear(f"{block}.adaLN_modulation.1", c)[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation[..., j * d : j * d + d] for j in range(6))
        qkv = linear(f"{block}.attn.qkv", norm(x) * (1 + scale1) + shift1)
        heads = []
        for h in range(config.num_heads):
            rows = slice(h * dim_head, (h + 1) * dim_head)
            q, k, v = (qkv[..., j * d : j * d + d][..., rows] for j in range(3))
            heads.append((q @ k.transpose(1, 2) / math.sqrt(dim_head)).softmax(-1) @ v)
        x = x + gate1 * linear(f"{block}.attn.proj", torch.cat(heads, -1))
        hidden = linear(f"{block}.mlp.fc1", norm(x) * (1 + scale2) + shift2)
        if config.gelu == "tanh":
            hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        else:
            hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + gate2 * linear(f"{block}.mlp.fc2", hidden)
    modulation = linear("final_layer.adaLN_modulation.1", c)[:, None]
    out = linear("final_layer.linear", norm(x) * (1 + modulation[..., d:]) + modulation[..., :d])
    image = torch.empty_like(x_t)
    for r, s, i, j, channel in itertools.product(
        range(grid), range(grid), range(p), range(p), range(config.in_channels)
    ):
        row = (i * p + j) * config.in_channels + channel  # channel fastest
        image[:, channel, r * p + i, s * p + j] = out[:, r * grid + s, row]
    return image


@pytest.mark.parametrize("gelu", ["tanh", "none"])
def test_residual_routing_is_stock_sit(gelu):
    config = replace(SMALL, gelu=gelu)
    model = perturbed(config)
    velocity = model(*inputs(config))
    assert velocity.abs().mean() > 0.1
    torch.testing.assert_close(velocity, stock_sit(model.state_dict(), config, *inputs(config)), rtol=1e-9, atol=1e-10)


def test_residual_routing_is_a_running_sum_to_the_bit():
    model = perturbed(SMALL, torch.float32)
    x_t, t, y = inputs(SMALL, dtype=torch.float32)
    x = model.x_embedder(x_t) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    for block in model.blocks:
        modulation = block.modulation(c)
        x = x + block.attention(x, *modulation[:3])
        x = x + block.feed_forward(x, *modulation[3:])
    assert torch.equal(model(x_t, t, y), model._unpatchify(model.final_layer(x, c)))


BLOCK_SHAPES = {
    "attn.qkv": (48, 16),
    "attn.proj": (16, 16),
    "mlp.fc1": (32, 16),
    "mlp.fc2": (16, 32),
    "adaLN_modulation.1": (96, 16),
}
STOCK_SHAPES = {
    "x_embedder.proj": (16, 3, 2, 2),
    "t_embedder.mlp.0": (16, 256),
    "t_embedder.mlp.2": (16, 16),
    "final_layer.linear": (12, 16),
    "final_layer.adaLN_modulation.1": (32, 16),
    **{f"blocks.{i}.{name}": shape for i in range(4) for name, shape in BLOCK_SHAPES.items()},
}


@pytest.mark.parametrize(
    ("routing", "extra"),
    [
        (RESIDUAL, {}),
        (RoutingConfig(query="static"), {"routing.queries.weight": (9, 16)}),
        (RoutingConfig(query="static", final=False), {"routing.queries.weight": (8, 16)}),
        (RoutingConfig(), {"routing.queries.weight": (9, 16), "routing.queries.t_gate": (9, 16)}),
        (RoutingConfig(query="dynamic"), {"routing.queries.weight": (9, 16, 16)}),
    ],
)
def test_parameter_names_are_those_of_public_checkpoints(routing, extra):
    expected = {f"{name}.weight": shape for name, shape in STOCK_SHAPES.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in STOCK_SHAPES.items()}
    expected |= {"pos_embed": (1, 4, 16), "y_embedder.embedding_table.weight": (6, 16)} | extra
    state = SiT(replace(SMALL, routing=routing)).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("SiT-S/2", 32_957_200),
        ("SiT-B/2", 130_500_112),
        ("SiT-L/2", 458_086_416),
        ("SiT-XL/2", 675_111_184),
    ],
)
def test_presets_have_the_published_size(name, count):
    with torch.device("meta"):
        model = SiT(preset(name, RESIDUAL))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_presets_by_name():
    assert len(PRESETS) == 12
    assert [preset(f"SiT-{size}/2").num_heads for size in ("S", "B", "L", "XL")] == [6, 12, 16, 16]
    config = preset("SiT-B/4", input_size=64)
    assert (config.hidden_size, config.patch_size, config.input_size) == (768, 4, 64)
    assert config.routing == RoutingConfig()
    with pytest.raises(ValueError, match=r"no preset 'SiT-M/2'; there are SiT-S/2"):
        preset("SiT-M/2")


@pytest.mark.parametrize("routing", [RESIDUAL, RoutingConfig(), RoutingConfig(query="dynamic", final=False)])
def test_velocity_is_zero_at_first(routing):
    config = replace(SMALL, routing=routing)
    assert torch.count_nonzero(SiT(config).double()(*inputs(config))) == 0


def test_the_head_does_not_modulate_at_first():
    shift_and_scale = SiT(SMALL).final_layer.adaLN_modulation(torch.randn(2, 16, generator=generator(3)))
    assert torch.count_nonzero(shift_and_scale) == 0


def test_norms_have_the_published_epsilon():
    """1e-6, and 1e-5 of queries and keys; each halves a variance of its size."""
    model: Any = SiT(replace(SMALL, qk_norm=True))
    block = model.blocks[0]
    for epsilon, norms in (
        (1e-6, (block.norm1, block.norm2, model.final_layer.norm_final)),
        (1e-5, (block.attn.q_norm, block.attn.k_norm)),
    ):
        for norm in norms:
            flat = epsilon**0.5 * (-1.0) ** torch.arange(norm.normalized_shape[0])
            torch.testing.assert_close(norm(flat).square(), torch.full_like(flat, 0.5))


def test_blocks_write_nothing_at_first():
    """adaLN-Zero: the gates are zero whatever comes in, and one step away from zero they are not."""
    block: Any = SiT(SMALL).blocks[0]
    h, c = torch.randn(2, 4, 16, generator=generator(2)), torch.randn(2, 16, generator=generator(3))
    for sublayer, part in ((block.attention, slice(0, 3)), (block.feed_forward, slice(3, 6))):
        assert torch.count_nonzero(sublayer(h, *block.modulation(c)[part])) == 0
    with torch.no_grad():
        block.adaLN_modulation[1].bias.fill_(1.0)
    for sublayer, part in ((block.attention, slice(0, 3)), (block.feed_forward, slice(3, 6))):
        assert torch.count_nonzero(sublayer(h, *block.modulation(c)[part])) > 0


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 4e-6)])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 8])
@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("query", ["static", "static_t", "dynamic"])
def test_zero_queries_with_count_preserve_a_plain_sit(query, final, chunk_size, dtype, tolerance):
    plain = perturbed(SMALL, dtype)
    routing = RoutingConfig(query=query, chunk_size=chunk_size, summary="sum", scale="count", final=final)
    routed = SiT(replace(SMALL, routing=routing)).to(dtype)
    missing, unexpected = routed.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("routing.") for name in missing) and not unexpected
    expected, got = plain(*inputs(SMALL, dtype=dtype)), routed(*inputs(SMALL, dtype=dtype))
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("change", [{"summary": "last"}, {"summary": "mean"}])
def test_other_summaries_do_not_preserve_it(change):
    plain = perturbed(SMALL)
    routing = RoutingConfig(**{"chunk_size": 4, "summary": "sum", "scale": "count", **change})
    routed = SiT(replace(SMALL, routing=routing)).double()
    routed.load_state_dict(plain.state_dict(), strict=False)
    expected, got = plain(*inputs(SMALL)), routed(*inputs(SMALL))
    assert (got - expected).abs().max() > 0.01 * expected.abs().max()


ROUTINGS = [
    RoutingConfig(query=query, chunk_size=chunk_size, summary=summary, scale=scale, anchor=anchor, final=final)
    for query, chunk_size, summary, scale, anchor, final in itertools.product(
        ("static", "static_t", "dynamic"),
        (1, 3, 8),
        ("sum", "last", "mean"),
        ("softmax", "count"),
        (False, True),
        (False, True),
    )
]


@pytest.mark.parametrize("query", ["static", "static_t", "dynamic"])
@pytest.mark.parametrize("chunk_size", [1, 3, 8])
def test_every_routing_trains(query, chunk_size):
    """Gradients are finite everywhere and reach the query of every reader that has a choice."""
    for routing in ROUTINGS:
        if (routing.query, routing.chunk_size) != (query, chunk_size):
            continue
        config = replace(SMALL, routing=routing)
        model = perturbed(config)
        model(*inputs(config)).square().mean().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None and parameter.grad.isfinite().all(), (routing, name)
                assert parameter.grad.any(), (routing, name)
        for name, parameter in model.routing.named_parameters():
            reached = parameter.grad.flatten(1).any(dim=1)
            for reader in range(1, model.routing.num_readers + 1):
                has_choice = len(model.routing.plan.sources_of(reader)) - routing.anchor > 1
                assert reached[reader - 1] == has_choice, (routing, name, reader)


def reference_read(outputs: list[Tensor], plan, reader: int, query: Tensor, routing: RoutingConfig) -> Tensor:
    """What `reader` gets, by equation 5 over the sources that the plan lists, one at a time."""
    sources = []
    for kind, n in plan.sources_of(reader):
        members = outputs[(n - 1) * routing.chunk_size + 1 : n * routing.chunk_size + 1]
        if kind == "raw" or n == 0:
            sources.append(outputs[n])
        else:
            stacked = torch.stack(members)
            sources.append({"last": stacked[-1], "sum": stacked.sum(0), "mean": stacked.mean(0)}[routing.summary])
    anchor = sources.pop(0) if routing.anchor else torch.zeros(())
    if not sources:
        return outputs[0]
    keys = [v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() for v in sources]
    weights = torch.stack([(query * k).sum(-1) / math.sqrt(k.shape[-1]) for k in keys]).softmax(0)
    count = len(sources) if routing.scale == "count" else 1
    return anchor + count * sum(a.unsqueeze(-1) * v for a, v in zip(weights, sources, strict=True))


@pytest.mark.parametrize("routing", ROUTINGS[::7])
def test_streams_follow_the_equations(routing):
    """Equations 5 to 7, reader by reader, from queries made by hand."""
    module = perturbed(replace(SMALL, routing=routing)).routing
    outputs = [torch.randn(2, 4, 16, generator=generator(i), dtype=torch.float64) for i in range(9)]
    e = torch.randn(2, 16, generator=generator(20), dtype=torch.float64)
    weight = module.queries.weight
    stream = module.open(outputs[0], e)
    for reader in range(1, 9 + routing.final):
        if routing.query == "dynamic":
            query = outputs[reader - 1] @ weight[reader - 1].T
        else:
            query = weight[reader - 1].expand(2, 1, 16)
        if routing.query == "static_t":
            query = query + (module.queries.t_gate[reader - 1] * e)[:, None]
        torch.testing.assert_close(stream.read(), reference_read(outputs, module.plan, reader, query, routing))
        if reader <= 8:
            stream.write(outputs[reader])
    if not routing.final:
        torch.testing.assert_close(stream.read(), torch.stack(outputs).sum(0))


def test_an_offset_of_the_timestep_embedding_is_another_timestep():
    """What a critic is told beside t: e(t) + (e(t') - e(t)) is t' to all that reads it."""
    model = perturbed(SMALL_DAR)
    x_t, t, y = inputs(SMALL)
    other = 1 - t.square()
    offset = model.t_embedder(other) - model.t_embedder(t)
    torch.testing.assert_close(model(x_t, t, y, t_offset=offset), model(x_t, other, y))


def test_t_has_no_say_in_static_t_at_first():
    module: Any = SiT(SMALL_DAR).routing
    with torch.no_grad():
        module.queries.weight.normal_(generator=generator(5))

    def read_all(seed: int) -> list[Tensor]:
        stream = module.open(torch.ones(2, 4, 16), torch.randn(2, 16, generator=generator(seed)))
        for i in range(8):
            stream.read()
            stream.write(torch.randn(2, 4, 16, generator=generator(100 + i)))
        stream.read()
        return stream.weights

    assert all(torch.equal(a, b) for a, b in zip(read_all(1), read_all(2), strict=True))
    with torch.no_grad():
        module.queries.t_gate.fill_(1.0)
    assert not any(torch.allclose(a, b) for a, b in zip(read_all(1)[1:], read_all(2)[1:], strict=True))


@pytest.mark.parametrize("routing", [RESIDUAL, RoutingConfig(), RoutingConfig(query="dynamic", chunk_size=1)])
def test_gradient_checkpointing_changes_no_gradient(routing):
    model = perturbed(replace(SMALL, routing=routing))
    calls = []
    model.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))

    def gradients(*, checkpointing: bool) -> tuple[dict[str, Tensor], int]:
        calls.clear()
        model.zero_grad()
        model.gradient_checkpointing = checkpointing
        model(*inputs(SMALL)).square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, len(calls)

    kept, calls_kept = gradients(checkpointing=False)
    recomputed, calls_recomputed = gradients(checkpointing=True)
    assert (calls_kept, calls_recomputed) == (1, 2)
    assert kept.keys() == recomputed.keys()
    for name in kept:
        torch.testing.assert_close(kept[name], recomputed[name], rtol=1e-12, atol=1e-14)


def test_patches_go_out_the_way_they_came_in():
    config = SiTConfig(
        input_size=6, patch_size=2, in_channels=3, hidden_size=12, depth=1, num_heads=1, num_classes=1, routing=RESIDUAL
    )
    model = SiT(config)
    with torch.no_grad():  # token entry (c, i, j) = that pixel of the patch
        model.x_embedder.proj.weight.copy_(torch.eye(12).view(12, 3, 2, 2))
    image = torch.randn(2, 3, 6, 6, generator=generator(0))
    tokens = model.x_embedder(image)
    channel_fastest = tokens.view(2, 9, 3, 2, 2).permute(0, 1, 3, 4, 2).reshape(2, 9, 12)
    assert torch.equal(model._unpatchify(channel_fastest), image)


@pytest.mark.parametrize(("dim", "grid"), [(8, 3), (12, 2)])
def test_sincos_table_entry_by_entry(dim, grid):
    table = sincos_positions(dim, grid)
    assert table.shape == (1, grid**2, dim) and table.dtype == torch.float32
    quarter = dim // 4
    for row, column, j in itertools.product(range(grid), range(grid), range(quarter)):
        omega = 1 / 10000 ** (j / quarter)
        token = table[0, row * grid + column]
        expected = [
            math.sin(column * omega),
            math.cos(column * omega),
            math.sin(row * omega),
            math.cos(row * omega),
        ]
        torch.testing.assert_close(token[j::quarter], torch.tensor(expected))


def test_timesteps_are_not_rounded_by_bf16_inputs():
    """The sinusoid runs in float32: a bf16 model still tells apart what a bf16 angle would not."""
    model = perturbed(SMALL, torch.float32).bfloat16()
    t = torch.tensor([0.5, 0.5 + 2**-12])
    seen = []
    model.t_embedder.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.t_embedder(t)
    assert seen[0].dtype == torch.bfloat16
    angles = t.double()[:, None] * torch.exp(-math.log(1e4) * torch.arange(128).double() / 128)
    expected = torch.cat([angles.cos(), angles.sin()], 1)
    torch.testing.assert_close(seen[0].double(), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "model.depth must be at least 1; got 0"),
        ({"input_size": 5}, "model.input_size must be a multiple of patch_size = 2; got 5"),
        ({"num_heads": 3}, "multiple of num_heads = 3"),
        ({"gelu": "erf"}, "model.gelu must be tanh or none; got 'erf'"),
        ({"prediction": "x0"}, "prediction must be one of velocity, reversed_velocity, ddpm_eps; got 'x0'"),
        ({"frequency_shift": 2}, "model.frequency_shift must be 0 or 1; got 2"),
        (
            {"depth": 2**12, "hidden_size": 2**16},
            r"depth = 4096, hidden_size = 65536, .* are 7e\+13 parameters; at most 1e\+12 are possible",
        ),
        ({"norm2_eps": 0.0}, "model.norm2_eps must be above 0 and at most 1; got 0"),
    ],
)
def test_bad_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "unet"},
            "routing.kind must be one of attnres, dar, densenet, hyper, residual, unet_skip; got 'unet'",
        ),
        ({"query": "fixed"}, "routing.query must be one of static, static_t, dynamic; got 'fixed'"),
        ({"chunk_size": 0}, "routing.chunk_size must be at least 1"),
    ],
)
def test_bad_routings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**change)


def test_chunks_longer_than_the_model_are_refused():
    with pytest.raises(ValueError, match=r"chunk_size must lie in \[1, 8\], the number of sublayers; got 9"):
        SiT(replace(SMALL, routing=RoutingConfig(chunk_size=9)))


# folders

UNUSUAL = replace(
    SMALL,
    gelu="none",
    routing=RoutingConfig(query="dynamic", chunk_size=3, summary="mean", scale="count", anchor=True, final=False),
)


@pytest.fixture
def folder(tmp_path):
    perturbed(UNUSUAL, torch.float32).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edit_config(folder, **changes) -> None:
    """Set fields of config.json; None removes one, `routing_x` stands for x within routing."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        section = config["routing"] if name.startswith("routing_") else config
        key = name.removeprefix("routing_")
        section.pop(key) if value is None else section.update({key: value})
    path.write_text(json.dumps(config))


def test_round_trip_through_a_folder(folder):
    model, loaded = perturbed(UNUSUAL, torch.float32), SiT.from_pretrained(folder)
    assert loaded.config == UNUSUAL
    assert sorted(path.name for path in folder.iterdir() if path.name != "README.md") == [
        "config.json",
        "model.safetensors",
    ]
    state = loaded.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not loaded.pos_embed.requires_grad
    example = inputs(UNUSUAL, dtype=torch.float32)
    assert torch.equal(model(*example), loaded(*example))


def test_folders_without_newer_fields_load(tmp_path):
    """A field gets its default, so a default that changes the function would break old folders."""
    model = perturbed(SMALL_DAR, torch.float32)
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, gelu=None, mlp_ratio=None, routing_final=None, routing_anchor=None)
    edit_config(tmp_path, mlp_ratio=2.0)
    assert "gelu" not in (tmp_path / "config.json").read_text()
    assert SiT.from_pretrained(tmp_path).config == SMALL_DAR


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout": 0.1}, r"config\.json has fields this version does not know: dropout"),
        ({"routing_temperature": 2.0}, "config.json.*temperature"),
        ({"depth": None}, "config.json.*depth"),
        ({"depth": 0}, "config.json.*depth must be at least 1"),
        ({"depth": "four"}, "config.json"),
        ({"routing_query": "fixed"}, "config.json.*routing.query must be one of"),
        ({"routing": "dar"}, "config.json.*routing"),
        ({"hidden_size": 32}, "weights and configuration do not fit"),
        ({"depth": 3, "routing_chunk_size": 2}, "weights and configuration do not fit"),
    ],
)
def test_bad_configurations_are_refused(folder, changes, message):
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        SiT.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_config_must_be_a_json_object(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        SiT.from_pretrained(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        SiT.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["shape", "missing", "extra"])
def test_weights_that_do_not_fit_are_refused(folder, damage):
    state = load_file(folder / "model.safetensors")
    if damage == "shape":
        state["final_layer.linear.bias"] = torch.zeros(24)
    elif damage == "missing":
        del state["final_layer.linear.bias"]
    else:
        state["projectors.0.0.weight"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors")
    name = "projectors.0.0.weight" if damage == "extra" else "final_layer.linear.bias"
    with pytest.raises(ValueError, match=f"(?s)weights and configuration do not fit.*{name}"):
        SiT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        SiT.from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        SiT.from_pretrained(tmp_path / "nowhere")
