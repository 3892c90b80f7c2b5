"""Public checkpoints: each format against its network written out, and what is refused."""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dar import SiT, describe_checkpoint, load_pretrained, load_projectors
from dar.checkpoints.contents import _is_safetensors
from dar.predictions import DdpmEps, checked_t, ddpm_index
from dar.retrofit import function_error, retrofit
from dar.routing import RoutingConfig
from tests.checkpoint_files import (
    CHANNELS,
    CLASSES,
    DEPTH,
    DIM,
    HEADS,
    SIZE,
    Malicious,
    ddpm_scales,
    generator,
    official_output,
    official_state,
    projectors,
    training_file,
)

TOLERANCE = 1e-9
Y = torch.tensor([0, 3, CLASSES, 1])  # the null class among them
T = torch.tensor([0.0, 0.2, 0.75, 1.0], dtype=torch.float64)


def noisy(seed: int = 1) -> Tensor:
    return torch.randn(len(Y), CHANNELS, SIZE, SIZE, generator=generator(seed), dtype=torch.float64)


def relative(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach(), expected.detach()
    return float((got - expected).abs().max() / expected.square().mean().sqrt())


def saved(tmp_path: Path, content: Any, name: str = "file.pt") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def sit_velocity(state: dict[str, Tensor], x_t: Tensor, t: Tensor) -> Tensor:
    """SiT's t is 0 at noise and its output, the first channels, is data - noise."""
    return -official_output(state, x_t, 1 - t, Y)[:, :CHANNELS]


def with_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


# SiT

NESTINGS = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "ema": lambda state: training_file(official_state(8, seed=9), state, model="SiT-S/2", path_type="Linear"),
    "distributed": lambda state: with_prefix("module.", state),
    "compiled": lambda state: with_prefix("_orig_mod.", state),
    "both": lambda state: with_prefix("module._orig_mod.", state),
}


@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_sit_is_its_network_run_backwards(tmp_path, nesting, out_channels):
    state = official_state(out_channels)
    path = saved(tmp_path, NESTINGS[nesting](state))
    model = load_pretrained(path, num_heads=HEADS, format="sit").double()
    assert relative(model(noisy(), T, Y), sit_velocity(state, noisy(), T)) < TOLERANCE
    assert model.t_range == (0.0, 1.0) and model.null_label == CLASSES


@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
def test_patches_of_four_pixels(tmp_path, out_channels):
    state = official_state(out_channels)
    for name, shape in (("weight", (16 * out_channels, DIM)), ("bias", (16 * out_channels,))):
        state[f"final_layer.linear.{name}"] = torch.randn(shape)
    state |= {"x_embedder.proj.weight": torch.randn(DIM, CHANNELS, 4, 4)}
    model = load_pretrained(saved(tmp_path, state), num_heads=HEADS, format="sit")
    assert (model.config.patch_size, model.config.in_channels, model.config.input_size) == (4, CHANNELS, 16)


def test_weights_choose_between_ema_and_model(tmp_path):
    model_state, ema_state = official_state(4, seed=1), official_state(4, seed=2)
    path = saved(tmp_path, training_file(model_state, ema_state, model="SiT-S/2"))
    for weights, state in (("ema", ema_state), ("model", model_state)):
        model = load_pretrained(path, weights=weights, num_heads=HEADS).double()
        assert relative(model(noisy(), T, Y), sit_velocity(state, noisy(), T)) < TOLERANCE
    bare = saved(tmp_path, ema_state, "bare.pt")
    with pytest.raises(ValueError, match=r"bare\.pt has no weights 'model'; it holds one set without a name"):
        load_pretrained(bare, weights="model", num_heads=HEADS)
    only_model = saved(tmp_path, {"model": model_state, "args": argparse.Namespace()}, "model.pt")
    with pytest.raises(ValueError, match=r"no weights 'ema'; it holds only 'model'"):
        load_pretrained(only_model, num_heads=HEADS)


def test_files_from_before_torch_1_6_load(tmp_path):
    state = official_state(4)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model = load_pretrained(tmp_path / "old.pt", num_heads=HEADS).double()
    assert relative(model(noisy(), T, Y), sit_velocity(state, noisy(), T)) < TOLERANCE


def test_of_a_range_of_all_t_no_value_is_looked_at():
    odd = torch.tensor([math.nan, 1.5])
    assert checked_t(odd, (0.0, 1.0), "x") is odd
    with pytest.raises(ValueError):
        checked_t(odd, (0.0, 0.9), "x")


def test_half_precision_becomes_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in official_state(4).items()}
    model = load_pretrained(saved(tmp_path, state), num_heads=HEADS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert relative(model.double()(noisy(), T, Y), sit_velocity(state, noisy(), T)) < TOLERANCE


@pytest.mark.parametrize(("dim", "hidden", "ratio"), [(16, 64, 4), (28, 61, pytest.approx(61 / 28, rel=1e-15))])
def test_the_width_of_the_mlp_is_read_to_the_unit(tmp_path, monkeypatch, dim, hidden, ratio):
    """4 is 4 exactly, as exports ask for; in floating point 28 (61 / 28) is less than 61."""
    for name, value in {"DIM": dim, "DIM_HEAD": dim // HEADS, "HIDDEN": hidden}.items():
        monkeypatch.setattr(f"tests.checkpoint_files.{name}", value)
    config = load_pretrained(saved(tmp_path, official_state(4)), num_heads=HEADS).config
    assert int(dim * config.mlp_ratio) == hidden and config.mlp_ratio == ratio


def test_safetensors_load_like_a_pt_file(tmp_path):
    state = official_state(4)
    save_file(state, tmp_path / "file.safetensors")
    model = load_pretrained(tmp_path / "file.safetensors", num_heads=HEADS).double()
    assert relative(model(noisy(), T, Y), sit_velocity(state, noisy(), T)) < TOLERANCE


def test_a_header_beyond_the_file_is_no_safetensors(tmp_path):
    for length in (12, 13):
        (tmp_path / f"{length}").write_bytes(length.to_bytes(8, "little") + b'{"a": "bcd"}')
    assert _is_safetensors(tmp_path / "12") and not _is_safetensors(tmp_path / "13")


def test_numbers_beside_the_weights_are_no_weights(tmp_path):
    top = {"ema": official_state(4), "train_steps": torch.tensor(5)}
    torch.save(top, tmp_path / "file.pt")
    assert describe_checkpoint(tmp_path / "file.pt").sets == ("ema",)


def test_a_loaded_model_trains_and_its_file_stays(tmp_path):
    path = saved(tmp_path, official_state(4))
    before = path.read_bytes()
    model = load_pretrained(path, num_heads=HEADS)
    assert not model.pos_embed.requires_grad and not model.training
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if name != "pos_embed")
    model(noisy().float(), T.float(), Y).square().mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert path.read_bytes() == before
    assert not torch.equal(model.blocks[0].attn.qkv.weight, official_state(4)["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    "args",
    [{"path_type": "GVP"}, {"path_type": "VP"}, {"prediction": "score"}, {"path_type": "cosine", "encoder_depth": 2}],
)
def test_other_paths_and_predictions_are_refused(tmp_path, args):
    path = saved(tmp_path, training_file(official_state(4), official_state(4), model="SiT-S/2", **args))
    name = next(iter(args))
    with pytest.raises(ValueError, match=rf"file\.pt was trained with {name} = {args[name]}; only"):
        load_pretrained(path, num_heads=HEADS)


# the number of heads


def test_unknown_number_of_heads_is_asked_for(tmp_path):
    path = saved(tmp_path, official_state(4))
    with pytest.raises(ValueError, match=r"depth 3 with width 16 is no known size; give num_heads"):
        load_pretrained(path)
    with pytest.raises(ValueError, match="multiple of num_heads = 3"):
        load_pretrained(path, num_heads=3)
    with pytest.raises(ValueError, match="num_heads must be at least 1; got 0"):
        load_pretrained(path, num_heads=0)


def test_number_of_heads_from_training_arguments_and_known_sizes(tmp_path):
    path = saved(tmp_path, training_file(official_state(4), official_state(4), model="SiT-tiny", num_heads=HEADS))
    assert load_pretrained(path).config.num_heads == HEADS
    from dar.presets import known_num_heads

    assert [known_num_heads(*shape) for shape in ((12, 384), (12, 768), (24, 1024), (28, 1152), (12, 385))] == [
        6, 12, 16, 16, None
    ]  # fmt: skip


# REPA


def legacy_name(name: str) -> str:
    """Encoder depth 1: the later blocks are counted from 0."""
    first, _, rest = name.partition(".")
    number, _, layer = rest.partition(".")
    return f"decoder_blocks.{int(number) - 1}.{layer}" if first == "blocks" and number != "0" else name


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("is_legacy", [False, True])
def test_repa_keeps_its_direction_and_its_projectors_apart(tmp_path, is_legacy, qk_norm):
    state = official_state(4, qk_norm=qk_norm)
    content = {legacy_name(name) if is_legacy else name: tensor for name, tensor in state.items()}
    path = saved(tmp_path, content | projectors())
    model = load_pretrained(path, num_heads=HEADS).double()
    assert relative(model(noisy(), T, Y), official_output(state, noisy(), T, Y)) < TOLERANCE
    assert not any(name.startswith("projectors") for name in model.state_dict())
    kept = load_projectors(path)
    assert kept.keys() == projectors().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in projectors().items())


def test_repa_training_files_are_told_by_their_arguments(tmp_path):
    state = official_state(4)
    args = {"model": "SiT-XL/2", "path_type": "linear", "prediction": "v", "encoder_depth": 8}
    path = saved(tmp_path, training_file(official_state(4, seed=1), state, **args) | {"steps": 10})
    model = load_pretrained(path, num_heads=HEADS).double()
    assert relative(model(noisy(), T, Y), official_output(state, noisy(), T, Y)) < TOLERANCE


def test_qk_norm_tells_the_number_of_heads(tmp_path):
    path = saved(tmp_path, official_state(4, qk_norm=True) | projectors())
    assert load_pretrained(path).config.num_heads == HEADS
    with pytest.raises(ValueError, match=r"has 2 heads, by its q_norm; num_heads = 4"):
        load_pretrained(path, num_heads=4)


# DiT


def ddpm_velocity(eps_at: Any, z: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From DDPM's sample and step to the linear path: x_t, t and the velocity eps - x0."""
    a, b = (scale[index] for scale in ddpm_scales())
    a4, b4 = a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1)
    eps = eps_at(z, index.double())
    return z / (a4 + b4), b / (a + b), eps - (z - b4 * eps) / a4


@pytest.mark.parametrize("out_channels", [CHANNELS, 2 * CHANNELS])
def test_dit_is_a_velocity_by_change_of_variables(tmp_path, out_channels):
    state = official_state(out_channels)
    path = saved(tmp_path, training_file(official_state(out_channels, seed=1), state, model="DiT-XL/2"))
    model = load_pretrained(path, num_heads=HEADS).double()
    index = torch.tensor([0, 250, 600, 999])
    x_t, t, velocity = ddpm_velocity(lambda z, i: official_output(state, z, i, Y)[:, :CHANNELS], noisy(), index)
    for row in range(len(index)):  # velocities differ by orders of magnitude along t
        assert relative(model(x_t, t, Y)[row], velocity[row]) < 1e-8


def test_dit_names_its_range_of_t_and_keeps_to_it(tmp_path):
    model = load_pretrained(saved(tmp_path, official_state(8)), num_heads=HEADS, format="dit")
    assert model.t_range == pytest.approx((0.009901, 0.993687), abs=1e-6)
    for t in (0.0, 0.0098, 0.9938, 1.0, -1.0, float("nan")):
        times = torch.tensor([0.5, 0.5, t, 0.5])
        with pytest.raises(ValueError, match=r"t must lie in \[0\.0099\d+, 0\.9936\d+\] .* ddpm_eps; got"):
            model(noisy().float(), times, Y)
    ends = torch.tensor([*model.t_range] * 2)
    assert model(noisy().float(), ends, Y).isfinite().all()


def test_change_of_variables_is_exact_for_a_known_network():
    """With the true eps as output, the velocity is eps - x0 at any t, and the input is DDPM's sample."""
    convention = DdpmEps()
    x0, eps = noisy(1), noisy(2)
    t = torch.tensor([0.02, 0.3, 0.7, 0.99], dtype=torch.float64)
    weight = t.view(-1, 1, 1, 1)
    x_t = (1 - weight) * x0 + weight * eps
    assert relative(convention.velocity(eps, x_t, t), eps - x0) < 1e-12
    z = convention.network_input(x_t, t)
    a, b = ((1 - weight) / weight).atan().sin(), ((1 - weight) / weight).atan().cos()
    assert relative(z, a * x0 + b * eps) < 1e-12


def test_index_interpolates_the_log_ratio():
    a, b = ddpm_scales()
    t = b / (a + b)
    torch.testing.assert_close(ddpm_index(t), torch.arange(1000, dtype=torch.float64), rtol=0, atol=1e-7)
    middle = torch.sigmoid(0.75 * torch.logit(t[400:401]) + 0.25 * torch.logit(t[401:402]))
    assert float(ddpm_index(middle)) == pytest.approx(400.25, abs=1e-6)
    first = torch.sigmoid(torch.logit(t[:2]).mean(0, keepdim=True))
    assert float(ddpm_index(first)) == pytest.approx(0.5, abs=1e-6)
    assert float(ddpm_index(torch.tensor([0.5]))) == pytest.approx(258.1, abs=0.05)


def test_a_dit_gains_routing_like_any_model(tmp_path):
    model = load_pretrained(saved(tmp_path, official_state(8)), num_heads=HEADS, format="dit")
    routed = retrofit(model, RoutingConfig(chunk_size=1, scale="count"))
    assert function_error(model, routed)[0] < 1e-4


# diffusers


def diffusers_model(**changes: Any) -> Any:
    """A DiTTransformer2DModel whose blocks share their embedders' weights, as converted ones do."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    shape = {"num_layers": DEPTH, "num_attention_heads": HEADS, "attention_head_dim": DIM // HEADS}
    shape |= {"in_channels": CHANNELS, "out_channels": 2 * CHANNELS, "sample_size": SIZE, "patch_size": 2}
    model = diffusers.DiTTransformer2DModel(**{**shape, "num_embeds_ada_norm": CLASSES, **changes})
    first = model.transformer_blocks[0].norm1.emb
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())
    return model.eval()


def as_official(model: Any) -> dict[str, Tensor]:
    """By the public table of names, one line for each."""
    w = model.state_dict()
    first = "transformer_blocks.0.norm1.emb"
    state = {"pos_embed": model.pos_embed.pos_embed}
    state["y_embedder.embedding_table.weight"] = w[f"{first}.class_embedder.embedding_table.weight"]
    for kind in ("weight", "bias"):
        state[f"x_embedder.proj.{kind}"] = w[f"pos_embed.proj.{kind}"]
        state[f"t_embedder.mlp.0.{kind}"] = w[f"{first}.timestep_embedder.linear_1.{kind}"]
        state[f"t_embedder.mlp.2.{kind}"] = w[f"{first}.timestep_embedder.linear_2.{kind}"]
        state[f"final_layer.adaLN_modulation.1.{kind}"] = w[f"proj_out_1.{kind}"]
        state[f"final_layer.linear.{kind}"] = w[f"proj_out_2.{kind}"]
        for i in range(DEPTH):
            block = f"transformer_blocks.{i}"
            state[f"blocks.{i}.adaLN_modulation.1.{kind}"] = w[f"{block}.norm1.linear.{kind}"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([w[f"{block}.attn1.to_{n}.{kind}"] for n in "qkv"])
            state[f"blocks.{i}.attn.proj.{kind}"] = w[f"{block}.attn1.to_out.0.{kind}"]
            state[f"blocks.{i}.mlp.fc1.{kind}"] = w[f"{block}.ff.net.0.proj.{kind}"]
            state[f"blocks.{i}.mlp.fc2.{kind}"] = w[f"{block}.ff.net.2.{kind}"]
    return state


def exact_sinusoid(model: Any) -> Any:
    """diffusers computes the sinusoid in float32 whatever the model's type; here in float64, by its own formula."""

    def time_proj(timestep: Tensor) -> Tensor:
        angles = timestep[:, None] * 1e4 ** (-torch.arange(128, dtype=torch.float64) / 127)
        return torch.cat([angles.cos(), angles.sin()], dim=1)

    model = model.double()
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.forward = time_proj
    return model


INDEX = torch.tensor([0, 250, 600, 999])


def diffusers_velocity(model: Any) -> tuple[Tensor, Tensor, Tensor]:
    return ddpm_velocity(lambda z, i: model(z, i, Y).sample[:, :CHANNELS], noisy(), INDEX)


def check_rows(model: SiT, case: tuple[Tensor, Tensor, Tensor], tolerance: float = 1e-8) -> None:
    x_t, t, velocity = case
    got = model.double()(x_t, t, Y)
    assert max(relative(a, b) for a, b in zip(got, velocity, strict=True)) < tolerance


def save_sharded(model: Any, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1


def save_as_old_class(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "Transformer2DModel"}))


def save_as_pipeline(model: Any, folder: Path) -> None:
    model.save_pretrained(folder / "transformer")
    index = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "scheduler").mkdir()
    schedule = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))


LAYOUTS = {
    "safetensors": lambda model, folder: model.save_pretrained(folder),
    "bin": lambda model, folder: model.save_pretrained(folder, safe_serialization=False),
    "sharded": save_sharded,
    "old class": save_as_old_class,
    "pipeline": save_as_pipeline,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_folders_compute_what_diffusers_computes(tmp_path, layout):
    source = diffusers_model()
    LAYOUTS[layout](source, tmp_path / "folder")
    model = load_pretrained(tmp_path / "folder")
    check_rows(model, diffusers_velocity(exact_sinusoid(source)))


@pytest.mark.parametrize(("max_shard_size", "num_files"), [("10GB", 1), ("10KB", 7)])
def test_diffusers_half_precision(tmp_path, max_shard_size, num_files):
    diffusers_model().half().save_pretrained(tmp_path, variant="fp16", max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.fp16*.safetensors"))) == num_files
    state = {name: tensor.float() for name, tensor in as_official(diffusers_model()).items()}
    halved = {name: t.half().float() if name != "pos_embed" else t for name, t in state.items()}
    case = ddpm_velocity(
        lambda z, i: official_output(halved, z, i, Y, last_frequency=127, norm2_eps=1e-5)[:, :CHANNELS], noisy(), INDEX
    )
    check_rows(load_pretrained(tmp_path), case)


def test_diffusers_weights_under_the_original_numerics(tmp_path):
    """Frequencies over 128 and epsilon 1e-6: DiT's network; diffusers' own differs from it by far."""
    source = diffusers_model()
    source.save_pretrained(tmp_path)
    state = as_official(source)
    original = ddpm_velocity(lambda z, i: official_output(state, z, i, Y)[:, :CHANNELS], noisy(), INDEX)
    check_rows(load_pretrained(tmp_path, numerics="original"), original)
    x_t, t, velocity = original
    assert relative(load_pretrained(tmp_path).double()(x_t, t, Y)[2], velocity[2]) > 1e-2


def test_a_named_format_is_a_file_or_a_folder(tmp_path):
    diffusers_model().save_pretrained(tmp_path)
    assert load_pretrained(tmp_path, format="diffusers").config.prediction == "ddpm_eps"
    with pytest.raises(ValueError, match=r"safetensors is not diffusers: a folder was expected"):
        load_pretrained(tmp_path / "diffusion_pytorch_model.safetensors", format="diffusers")
    for name in ("sit", "dit", "repa"):
        with pytest.raises(ValueError, match=f"is not {name}: a file was expected"):
            load_pretrained(tmp_path, format=name)


def test_what_a_diffusers_folder_leaves_out_is_what_diffusers_takes(tmp_path):
    source = diffusers_model(num_embeds_ada_norm=1000)
    source.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("norm_eps", "num_embeds_ada_norm", "activation_fn", "norm_type", "attention_bias"):
        del config[name]
    path.write_text(json.dumps(config))
    loaded = load_pretrained(tmp_path)
    assert loaded.config.norm2_eps == 1e-5 and loaded.config.num_classes == 1000
    path.write_text(json.dumps(config | {"norm_eps": 1e-3}))
    assert load_pretrained(tmp_path).config.norm2_eps == 1e-3
    with pytest.raises(ValueError, match=f"has {HEADS} heads; num_heads = {HEADS + 1}"):
        load_pretrained(tmp_path, num_heads=HEADS + 1)


def test_diffusers_untied_embedders_are_refused(tmp_path):
    source = diffusers_model()
    with torch.no_grad():
        source.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.weight[0, 0] += 1
    source.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"transformer_blocks\.1\..*linear_1\.weight differs from its copy"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"activation_fn": "geglu"}, "activation_fn = 'geglu' is not supported"),
        ("transformer/config.json", {"num_layers": None}, "must say num_layers in whole numbers"),
        ("transformer/config.json", {"num_layers": DEPTH + 1}, r"10 missing \(blocks\.3\.adaLN"),
        ("transformer/config.json", {"_class_name": "UNet2DModel"}, "holds a 'UNet2DModel'; expected DiT"),
        ("transformer/config.json", {"num_embeds_ada_norm": None}, r"transformer/config\.json: "),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "only 'epsilon'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "only 'linear'"),
    ],
)
def test_other_diffusers_models_are_refused(tmp_path, file, change, message):
    save_as_pipeline(diffusers_model(), tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_an_index_stays_in_its_folder(tmp_path):
    diffusers_model().save_pretrained(tmp_path / "folder", max_shard_size="20KB")
    path = tmp_path / "folder" / "diffusion_pytorch_model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["proj_out_1.bias"] = "../secret.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="names files outside its folder"):
        load_pretrained(tmp_path / "folder")


# our folders


@pytest.mark.parametrize("kind", ["sit", "repa", "dit", "diffusers"])
def test_a_saved_model_is_the_loaded_one(tmp_path, kind):
    if kind == "diffusers":
        diffusers_model().save_pretrained(tmp_path / "source")
        model = load_pretrained(tmp_path / "source")
    else:
        content = official_state(8, qk_norm=kind == "repa")
        model = load_pretrained(saved(tmp_path, content), num_heads=HEADS, format=kind)
    model.save_pretrained(tmp_path / "folder")
    t = torch.tensor([0.1, 0.4, 0.7, 0.9])
    for again in (load_pretrained(tmp_path / "folder"), SiT.from_pretrained(tmp_path / "folder")):
        assert again.config == model.config and again.t_range == model.t_range
        assert torch.equal(again(noisy().float(), t, Y), model(noisy().float(), t, Y))


def test_a_folder_of_ours_has_one_set_and_its_heads(tmp_path):
    load_pretrained(saved(tmp_path, official_state(4)), num_heads=HEADS).save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="has 2 heads; num_heads = 4"):
        load_pretrained(tmp_path / "folder", num_heads=4)
    with pytest.raises(ValueError, match="has no weights 'model'"):
        load_pretrained(tmp_path / "folder", weights="model")


# what is refused


def test_sit_or_dit_is_asked_for(tmp_path):
    path = saved(tmp_path, official_state(8))
    with pytest.raises(
        ValueError, match=r"can be dit or sit; say which with format\. It has 42 tensors, with x_emb"
    ) as e:
        load_pretrained(path, num_heads=HEADS)
    assert "final_layer.linear.weight (32, 16)" in str(e.value) and "no training argument" in str(e.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a dictionary of tensors"),
        ({}, "holds a dict, not"),
        ({"opt": {"lr": 1.0}, "epoch": 3}, "no weights among opt, epoch; expected tensors, or ema and model"),
        (
            {"ema": official_state(4), "state_dict": official_state(4)},
            "weights in more than one place among ema, state",
        ),
        ({"fc.weight": torch.ones(2, 3)}, r"of no known format; it has 1 tensors, with fc\.weight \(2, 3\)"),
        ({"a": torch.ones(1), "module.a": torch.ones(1)}, "holds a twice"),
    ],
)
def test_other_files_are_refused_with_what_was_seen(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"file\.pt.*{message}"):
        load_pretrained(saved(tmp_path, content), num_heads=HEADS)


def test_folders_of_no_or_several_formats_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"of no known format; it has the files notes\.txt"):
        load_pretrained(tmp_path)
    load_pretrained(saved(tmp_path, official_state(4)), num_heads=HEADS).save_pretrained(tmp_path / "two")
    (tmp_path / "two" / "model_index.json").write_text(json.dumps({"transformer": ["diffusers", "x"]}))
    with pytest.raises(ValueError, match=r"can be diffusers or dar; say which with format"):
        load_pretrained(tmp_path / "two")
    assert load_pretrained(tmp_path / "two", format="dar").config.depth == DEPTH
    with pytest.raises(ValueError, match="is not sit: a file was expected"):
        load_pretrained(tmp_path / "two", format="sit")
    with pytest.raises(ValueError, match="format must be one of"):
        load_pretrained(tmp_path / "two", format="onnx")
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        load_pretrained(tmp_path / "nowhere")


def broken(change: str) -> dict[str, Tensor]:
    state = official_state(4)
    if change == "missing":
        for kind in ("weight", "bias"):
            del state[f"blocks.1.attn.proj.{kind}"]
    elif change == "left over":
        state |= {f"extra.{i}": torch.ones(1) for i in range(6)}
    elif change == "escape":
        state["a\nb\x1b[2J"] = torch.ones(1)
    elif change == "shape":
        state["blocks.2.mlp.fc2.bias"] = torch.ones(3)
    elif change == "type":
        state["blocks.2.mlp.fc2.bias"] = torch.ones(DIM, dtype=torch.int64)
    elif change == "telling":
        del state["pos_embed"]
    elif change == "head":
        state["final_layer.linear.weight"] = torch.ones(24, DIM)
    elif change == "axes":
        state["x_embedder.proj.weight"] = torch.ones(DIM, 4)
    elif change == "empty":
        state["x_embedder.proj.weight"] = torch.ones(0, 4, 2, 2)
    elif change == "tokens":
        state["pos_embed"] = torch.ones(1, 15, DIM)
    elif change == "classes":
        state["y_embedder.embedding_table.weight"] = torch.ones(1, DIM)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"2 missing \(blocks\.1\.attn\.proj\.bias, blocks\.1\.attn\.proj\.weight\)"),
        ("left over", r"6 left over \(extra\.0, extra\.1, extra\.2, extra\.3, \.\.\)"),
        ("escape", r"1 left over \('a\\nb\\x1b\[2J'\)"),
        ("shape", r"1 of a wrong shape \(blocks\.2\.mlp\.fc2\.bias \(3,\) for \(16,\)\)"),
        ("type", r"1 not floating point \(blocks\.2\.mlp\.fc2\.bias\)"),
        ("telling", r"1 missing \(pos_embed\)"),
        ("head", r"final_layer\.linear\.weight has 24 rows; expected 16, or twice that"),
        ("axes", r"x_embedder\.proj\.weight has shape \(16, 4\); expected 4 axes"),
        ("empty", r"x_embedder\.proj\.weight has shape \(0, 4, 2, 2\)"),
        ("tokens", "has 15 tokens, which is no square"),
        ("classes", "has 1 rows, so there is no null class"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"file\.pt: .*{message}"):
        load_pretrained(saved(tmp_path, broken(change)), num_heads=HEADS)


def test_a_table_without_a_null_class_is_refused(tmp_path):
    path = saved(tmp_path, training_file(official_state(4), official_state(4), num_classes=CLASSES + 1))
    with pytest.raises(ValueError, match="has 6 rows, so there is no null class"):
        load_pretrained(path, num_heads=HEADS)


@pytest.mark.parametrize("kept", [0, 3, 300, 20_000, -10])
@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_files_are_refused_in_one_line(tmp_path, kept, is_zip):
    path = tmp_path / "file.pt"
    torch.save(official_state(4), path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"file\.pt (is damaged|asks to run colle\w*;)") as error:
        load_pretrained(path, num_heads=HEADS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("writer", ["zip", "before 1.6", "pickle", "in args"])
@pytest.mark.parametrize(("function", "name"), [(os.system, r"posix\.system"), (eval, r"(builtins\.)?eval")])
def test_code_in_a_file_never_runs(tmp_path, writer, function, name):
    touched = tmp_path / "touched"
    command = f"touch {touched}" if function is os.system else f"open({str(touched)!r}, 'w')"
    content: Any = official_state(4) | {"extra": Malicious(function, command)}
    path = tmp_path / "file.pt"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"extra": content["extra"]}, protocol=2))
    else:
        if writer == "in args":
            content = training_file(official_state(4), official_state(4), model=Malicious(function, command))
        torch.save(content, path, _use_new_zipfile_serialization=writer != "before 1.6")
    for reader in (load_pretrained, describe_checkpoint):
        with pytest.raises(ValueError, match=rf"file\.pt asks to run {name};") as error:
            reader(path)
        assert "\n" not in str(error.value)
    assert not touched.exists()


def test_a_malicious_bin_in_a_folder_never_runs(tmp_path):
    diffusers_model().save_pretrained(tmp_path, safe_serialization=False)
    bad = {"pos_embed.proj.bias": Malicious(os.system, f"touch {tmp_path / 'touched'}")}
    torch.save(bad, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.bin asks to run posix\.system"):
        load_pretrained(tmp_path)
    assert not (tmp_path / "touched").exists()


# descriptions


def test_descriptions(tmp_path):
    state = official_state(4, qk_norm=True) | projectors()
    path = saved(tmp_path, training_file(state, state, model="SiT-tiny/2", encoder_depth=2))
    found = describe_checkpoint(path)
    assert [entry.name for entry in found.formats] == ["repa"] and found.predictions == ("velocity",)
    assert (found.sets, found.num_projectors, found.heads_known) == (("ema", "model"), 6, True)
    assert found.args == {"model": "SiT-tiny/2", "encoder_depth": 2} and found.size_bytes == path.stat().st_size
    assert found.num_parameters == sum(t.numel() for t in official_state(4, qk_norm=True).values())
    bare = describe_checkpoint(saved(tmp_path, official_state(8), "bare.pt"))
    assert [entry.name for entry in bare.formats] == ["dit", "sit"] and not bare.heads_known
    assert bare.predictions == ("ddpm_eps", "reversed_velocity")
    of_model = describe_checkpoint(saved(tmp_path, {"model": official_state(4), "steps": 3}, "model.pt"))
    assert of_model.sets == ("model",) and of_model.config.depth == DEPTH


MEASURE = """
import resource, sys, torch
from dar import load_pretrained
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_pretrained(sys.argv[1], num_heads=8, format="sit")
sum(float(p.sum()) for p in model.parameters())  # every page is touched
print(peak() - before)
"""


@pytest.mark.slow
def test_loading_peaks_below_the_file_and_a_third(tmp_path):
    """On top of the interpreter with torch: 1.3 times the weights that are used, of a file with three sets of them."""
    from dar import SiTConfig

    config = SiTConfig(32, 2, 4, 512, 8, 8, 1000, routing=RoutingConfig(kind="residual"))
    state = dict(SiT(config).state_dict())
    size = sum(tensor.numel() * 4 for tensor in state.values())
    copies = [{name: tensor.clone() for name, tensor in state.items()} for _ in range(3)]
    content = {"model": copies[0], "ema": copies[1], "opt": copies[2], "args": argparse.Namespace(model="SiT-S/2")}
    path = saved(tmp_path, content)
    command = [sys.executable, "-c", MEASURE, str(path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert size > 100e6 and grown < 1.3 * size
