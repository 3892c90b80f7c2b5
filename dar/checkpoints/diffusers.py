"""diffusers' DiT: a folder of DiTTransformer2DModel, or of a pipeline that has one in `transformer/`.

Two traps. Every block carries a copy of the two embedders; they must be equal, and one is kept. And diffusers
computes another function than DiT from the same weights: its frequencies are 10000^(-i / 127) instead of
10000^(-i / 128), and the norm before the MLP has epsilon 1e-5 instead of 1e-6. `numerics="native"` is what diffusers
computes. `numerics="original"` is what DiT's code computes, and right for weights that were converted from DiT's,
such as facebook/DiT-XL-2-256.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dar.checkpoints.assembling import assemble
from dar.checkpoints.base import Format, Request, register
from dar.checkpoints.contents import Contents, read_contents, read_json, read_safetensors
from dar.checkpoints.family import CLASSES, HEAD, checked_config, without_variance
from dar.checkpoints.pickles import read_pickle
from dar.embeddings import sincos_positions
from dar.predictions import DDPM_BETAS, DDPM_STEPS
from dar.routing import RoutingConfig
from dar.sit import SiT, SiTConfig

CLASS_NAMES = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is the first's name in older folders
STEM = "diffusion_pytorch_model"
# The same weights in several files: full precision before half, safetensors before pickles.
_FILES = [
    name
    for variant in ("", ".fp16")
    for ending in ("safetensors", "bin")
    for name in (f"{STEM}{variant}.{ending}", f"{STEM}.{ending}.index{variant}.json")
]
_NEEDED = ("num_layers", "num_attention_heads", "attention_head_dim", "in_channels", "sample_size", "patch_size")
_FIXED = {
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
    "attention_bias": True,
    "norm_elementwise_affine": False,
}
_SCHEDULE = {
    "beta_schedule": "linear",
    "beta_start": DDPM_BETAS[0],
    "beta_end": DDPM_BETAS[1],
    "num_train_timesteps": DDPM_STEPS,
    "prediction_type": "epsilon",
}
_OUTER = {
    "pos_embed.proj": "x_embedder.proj",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": HEAD,
}
_INNER = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_EMBEDDERS = {
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": CLASSES.removesuffix(".weight"),
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_BLOCKS = "transformer_blocks."
EXPORTED = "_student_sigmas"  # in the config.json of a student that was exported as a DiTTransformer2DModel


def _matches(contents: Contents) -> bool:
    return contents.is_folder and (
        "transformer" in contents.pipeline or contents.config.get("_class_name") in CLASS_NAMES
    )


def _config(contents: Contents, request: Request) -> SiTConfig:
    transformer = _transformer(contents)
    config, path = transformer.config, transformer.path / "config.json"
    check_not_exported(path, config)
    _check_values(path, config, _FIXED)
    missing = [name for name in _NEEDED if not isinstance(config.get(name), int)]
    if missing:
        raise ValueError(f"{path} must say {', '.join(missing)} in whole numbers")
    num_heads = config["num_attention_heads"]
    if request.num_heads not in (None, num_heads):
        raise ValueError(f"{path} has {num_heads} heads; num_heads = {request.num_heads}")
    faithful = {"frequency_shift": 1, "norm2_eps": config.get("norm_eps", 1e-5)}
    return checked_config(
        path,
        input_size=config["sample_size"],
        patch_size=config["patch_size"],
        in_channels=config["in_channels"],
        hidden_size=num_heads * config["attention_head_dim"],
        depth=config["num_layers"],
        num_heads=num_heads,
        num_classes=config.get("num_embeds_ada_norm", 1000),
        routing=RoutingConfig(kind="residual"),
        prediction="ddpm_eps",
        **(faithful if request.numerics == "native" else {}),
    )


def _load(contents: Contents, request: Request) -> SiT:
    contents.check_one_set(request.weights)
    config = _config(contents, request)
    folder = _transformer(contents).path
    tensors = _by_our_names(folder, read_weights(folder))
    tensors["pos_embed"] = sincos_positions(config.hidden_size, config.input_size // config.patch_size)
    return assemble(folder, config, without_variance(tensors, config))


def _transformer(contents: Contents) -> Contents:
    """The folder of the network itself, its schedule looked at where a pipeline has one."""
    if "transformer" not in contents.pipeline:
        return contents
    schedule = contents.path / "scheduler" / "scheduler_config.json"
    _check_values(schedule, read_json(schedule), _SCHEDULE)
    transformer = read_contents(contents.path / "transformer")
    if transformer.config.get("_class_name") not in CLASS_NAMES:
        raise ValueError(
            f"{transformer.path} holds a {transformer.config.get('_class_name')!r}; expected {' or '.join(CLASS_NAMES)}"
        )
    return transformer


def check_not_exported(path: Path, config: dict[str, Any]) -> None:
    """Raises: ValueError for a student's weights, which are not what those of a DiT are."""
    if EXPORTED in config:
        raise ValueError(
            f"{path} is of an exported student, whose weights predict a velocity, at its own timesteps alone; give the "
            "folder that it was exported from"
        )


def _check_values(path: Path, config: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if config.get(name, value) != value:
            raise ValueError(f"{path}: {name} = {config[name]!r} is not supported; only {value!r}")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """From one file, or from the shards that an index lists; by `_FILES`, the first that is there."""
    found = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no {STEM}.safetensors, .bin, .fp16 variant or index of shards")
    if found.suffix != ".json":
        return _read_one(found)
    shards = read_json(found).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"{found} is no index of shards")
    if any(Path(shard).name != shard for shard in shards.values()):
        raise ValueError(f"{found} names files outside its folder")
    return {
        name: tensor for shard in sorted(set(shards.values())) for name, tensor in _read_one(folder / shard).items()
    }


def _read_one(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    tensors = read_pickle(path)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds more than a dictionary of tensors")
    return tensors


def _by_our_names(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renamed; q, k and v joined; the blocks' copies of the embedders checked and made one."""
    result: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        if not name.startswith(_BLOCKS):
            result[f"{_OUTER.get(layer, layer)}.{kind}"] = tensor
            continue
        number, _, layer = layer.removeprefix(_BLOCKS).partition(".")
        if layer in _QKV:
            parts.setdefault(f"blocks.{number}.attn.qkv.{kind}", {})[layer] = tensor
        elif layer in _EMBEDDERS:
            ours = f"{_EMBEDDERS[layer]}.{kind}"
            if ours in result and not torch.equal(result[ours], tensor):
                raise ValueError(f"{folder}: {name} differs from its copy in another block; only tied copies are read")
            result.setdefault(ours, tensor)
        else:
            result[f"blocks.{number}.{_INNER.get(layer, layer)}.{kind}"] = tensor
    for name, of_layer in parts.items():
        if len(of_layer) < len(_QKV):
            raise ValueError(
                f"{folder}: {name} is incomplete; it has {', '.join(sorted(of_layer))} of {', '.join(_QKV)}"
            )
        result[name] = torch.cat([of_layer[layer] for layer in _QKV])
    return result


def by_diffusers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other way round: a plain SiT's tensors by the names of a DiTTransformer2DModel, which computes positions."""
    result: dict[str, Tensor] = {}
    outer, inner = ({ours: theirs for theirs, ours in names.items()} for names in (_OUTER, _INNER))
    embedders = {ours: theirs for theirs, ours in _EMBEDDERS.items()}
    blocks = sorted({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        number, _, of_block = layer.removeprefix("blocks.").partition(".")
        if layer in embedders:
            result |= {f"{_BLOCKS}{i}.{embedders[layer]}.{kind}": tensor.clone() for i in blocks}
        elif of_block == "attn.qkv":
            parts = zip(_QKV, tensor.chunk(3), strict=True)
            result |= {f"{_BLOCKS}{number}.{theirs}.{kind}": part.clone() for theirs, part in parts}
        elif layer.startswith("blocks."):
            result[f"{_BLOCKS}{number}.{inner[of_block]}.{kind}"] = tensor
        elif name != "pos_embed":
            result[f"{outer[layer]}.{kind}"] = tensor
    return result


register(Format("diffusers", "diffusers DiTTransformer2DModel", True, _matches, _config, _load))
