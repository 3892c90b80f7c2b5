"""What the .pt files of SiT, REPA and DiT share: the names and shapes of their tensors.

L depth, D hidden size, P patch size, C in channels, O out channels, K classes, T tokens.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from dar.checkpoints.base import Request
from dar.checkpoints.contents import Contents
from dar.checkpoints.printable import printable
from dar.presets import known_num_heads
from dar.routing import RoutingConfig
from dar.sit import SiTConfig

PATCHES = "x_embedder.proj.weight"  # (D, C, P, P)
POSITIONS = "pos_embed"  # (1, T, D)
CLASSES = "y_embedder.embedding_table.weight"  # (K + 1, D)
FC1 = "blocks.0.mlp.fc1.weight"  # (M, D)
HEAD = "final_layer.linear"  # weight (P P O, D), row (p P + q) O + o
_TELLING = {PATCHES: 4, POSITIONS: 3, CLASSES: 2, FC1: 2, f"{HEAD}.weight": 2}  # what the shape is read off, and ranks


def is_family(contents: Contents) -> bool:
    """Whether this is a file of any of the three; which tensors are missing is said later, by name."""
    tensors = contents.any_weights
    return any(name.startswith("blocks.") for name in tensors) and sum(name in tensors for name in _TELLING) >= 3


def model_name(contents: Contents) -> str:
    """Such as "SiT-XL/2", from the training arguments; "" where they don't say."""
    return str(contents.args.get("model", ""))


def has_variance(contents: Contents) -> bool:
    """Whether the head has twice the channels (learn_sigma). Read off the tensor: SiT's flags contradict its files."""
    tensors = contents.any_weights
    patches, weight = tensors.get(PATCHES), tensors.get(f"{HEAD}.weight")
    if patches is None or weight is None or patches.dim() != 4 or weight.dim() != 2:
        return False
    return weight.shape[0] == 2 * patches.shape[1] * patches.shape[2] ** 2


def check_path(contents: Contents) -> None:
    """Only the linear path with a velocity is ours; another would load without a complaint and draw noise.

    Raises: ValueError naming the training argument.
    """
    for name, allowed in (("path_type", ("linear",)), ("prediction", ("velocity", "v"))):
        value = str(contents.args.get(name, allowed[0]))
        if value.lower() not in allowed:
            raise ValueError(
                f"{contents.path} was trained with {name} = {printable(value)}; only {allowed[0]} is supported"
            )


def family_config(contents: Contents, tensors: dict[str, Tensor], request: Request, prediction: str) -> SiTConfig:
    """The shape, from the tensors; the number of heads, from whatever tells it.

    The last row of the class table is the null class, which every public training has.

    Raises: ValueError naming the file and what is missing, odd, or not to be known.
    """
    _check_telling(contents, tensors)
    hidden_size, channels, patch, _ = tensors[PATCHES].shape
    grid = math.isqrt(tensors[POSITIONS].shape[1])
    if grid**2 != tensors[POSITIONS].shape[1]:
        raise ValueError(f"{contents.path}: {POSITIONS} has {tensors[POSITIONS].shape[1]} tokens, which is no square")
    num_classes = tensors[CLASSES].shape[0] - 1
    if num_classes + 1 in (1, contents.args.get("num_classes")):
        raise ValueError(f"{contents.path}: {CLASSES} has {num_classes + 1} rows, so there is no null class")
    depth = num_blocks(tensors)
    mlp_hidden = tensors[FC1].shape[0]
    mlp_ratio = mlp_hidden / hidden_size
    if int(hidden_size * mlp_ratio) != mlp_hidden:
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)
    return checked_config(
        contents.path,
        input_size=patch * grid,
        patch_size=patch,
        in_channels=channels,
        hidden_size=hidden_size,
        depth=depth,
        num_heads=_num_heads(contents, tensors, request, depth, hidden_size),
        num_classes=num_classes,
        mlp_ratio=mlp_ratio,
        routing=RoutingConfig(kind="residual"),
        prediction=prediction,
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
    )


def checked_config(path: Path, **fields: Any) -> SiTConfig:
    """Raises: ValueError naming the file where there can be no SiT of these fields."""
    try:
        return SiTConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def without_variance(tensors: dict[str, Tensor], config: SiTConfig) -> dict[str, Tensor]:
    """The head's first C of 2C output channels, where it has 2C. Channels are fastest: they are not the first rows."""
    channels, cells = config.in_channels, config.patch_size**2
    kept = {
        name: tensors[name].unflatten(0, (cells, 2 * channels))[:, :channels].flatten(0, 1)
        for name in (f"{HEAD}.weight", f"{HEAD}.bias")
        if name in tensors and tensors[name].shape[:1] == (2 * channels * cells,)
    }
    return tensors | kept


def num_blocks(tensors: dict[str, Tensor], prefix: str = "blocks.") -> int:
    """How many blocks are named; where numbers are left out, the fit names what is missing."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _check_telling(contents: Contents, tensors: dict[str, Tensor]) -> None:
    missing = [name for name in _TELLING if name not in tensors]
    if missing:
        raise ValueError(
            f"{contents.path}: tensors that do not fit a SiT: {len(missing)} missing ({', '.join(missing)})"
        )
    for name, rank in _TELLING.items():
        if tensors[name].dim() != rank or not tensors[name].numel():
            raise ValueError(f"{contents.path}: {name} has shape {tuple(tensors[name].shape)}; expected {rank} axes")
    _, channels, patch, _ = tensors[PATCHES].shape
    rows = tensors[f"{HEAD}.weight"].shape[0]
    if rows not in (channels * patch**2, 2 * channels * patch**2):
        raise ValueError(
            f"{contents.path}: {HEAD}.weight has {rows} rows; expected {channels * patch**2}, or twice that, for "
            f"patches of {channels} x {patch} x {patch}"
        )


def _num_heads(contents: Contents, tensors: dict[str, Tensor], request: Request, depth: int, hidden_size: int) -> int:
    q_norm = tensors.get("blocks.0.attn.q_norm.weight")
    if q_norm is not None:
        of_tensors = hidden_size // max(q_norm.numel(), 1)
        if request.num_heads not in (None, of_tensors):
            raise ValueError(f"{contents.path} has {of_tensors} heads, by its q_norm; num_heads = {request.num_heads}")
        return of_tensors
    given = request.num_heads or contents.args.get("num_heads") or known_num_heads(depth, hidden_size)
    if not isinstance(given, int):
        raise ValueError(
            f"{contents.path}: the number of heads leaves no trace in the weights, and depth {depth} with width "
            f"{hidden_size} is no known size; give num_heads"
        )
    return given
