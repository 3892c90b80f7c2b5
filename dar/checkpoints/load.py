"""`load_pretrained`: one entry point for every format; `describe_checkpoint`: what a file is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dar.checkpoints import repa
from dar.checkpoints.base import FORMATS, Format, Numerics, Request, Weights
from dar.checkpoints.contents import Contents, read_contents
from dar.checkpoints.printable import listed
from dar.presets import num_parameters
from dar.sit import SiT, SiTConfig


def load_pretrained(
    path: str | Path,
    *,
    weights: Weights = "ema",
    numerics: Numerics = "native",
    num_heads: int | None = None,
    format: str | None = None,
) -> SiT:
    """A public checkpoint, or a folder of ours, as velocity = model(x_t, t, y), with t = 0 data and t = 1 noise.

    Nothing in a file is executed. Files are mapped: the model's parameters lie in the file until they are changed,
    so the file must stay as it is while the model is alive.

    Args:
        path: a .pt file of SiT, REPA or DiT, a folder of diffusers' DiT or of a pipeline with one, or a folder
            written by `SiT.save_pretrained`.
        weights: which set of a training file that has both.
        numerics: "native" is what the code computes that wrote the file; "original" what the authors' code
            does with these weights. They differ for diffusers alone (`dar.checkpoints.diffusers`).
        num_heads: where it is neither in the file nor known by depth and width.
        format: a name of `dar.checkpoints.FORMATS`, where the contents fit several. The published files of SiT and
            DiT hold the same tensors: say which.

    Returns: the model in float32, in evaluation mode, plain; its `t_range` is (0, 1) but for DiT.
    Raises: FileNotFoundError; ValueError in one line naming the file and what is wrong with it.
    """
    request = Request(weights, numerics, num_heads)
    contents = read_contents(path)
    return chosen_format(contents, format).load(contents, request)


def load_projectors(path: str | Path, *, weights: Weights = "ema") -> dict[str, Tensor]:
    """REPA's projectors, `projectors.j.{0,2,4}.{weight,bias}`, which no model has; empty for other files."""
    return repa.projectors(read_contents(path), Request(weights).weights)


def chosen_format(contents: Contents, name: str | None = None) -> Format:
    """The format called `name`, or the one that the contents are of.

    Raises: ValueError saying what was seen, where none or several fit.
    """
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"format must be one of {', '.join(FORMATS)}; got {name!r}")
        if FORMATS[name].is_folder != contents.is_folder:
            raise ValueError(f"{contents.path} is not {name}: a {_kind(FORMATS[name].is_folder)} was expected")
        return FORMATS[name]
    found = matching_formats(contents)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"{contents.path} is of no known format; it has {_seen(contents)}")
    names = " or ".join(entry.name for entry in found)
    raise ValueError(f"{contents.path} can be {names}; say which with format. It has {_seen(contents)}")


def matching_formats(contents: Contents) -> list[Format]:
    return [entry for entry in FORMATS.values() if entry.matches(contents)]


@dataclass(frozen=True)
class Description:
    """What a checkpoint is.

    formats: those that fit; more than one where the contents don't tell.
    config: its shape; `config.num_heads` has a meaning only where `heads_known`.
    sets: names of the sets of weights; "only" is one that has no name.
    num_parameters: of the model, projectors and a variance that is dropped not counted.
    """

    path: Path
    formats: tuple[Format, ...]
    size_bytes: int
    config: SiTConfig
    heads_known: bool
    predictions: tuple[str, ...]
    sets: tuple[str, ...]
    args: dict[str, Any]
    num_parameters: int
    num_projectors: int


def describe_checkpoint(path: str | Path) -> Description:
    """Look at a checkpoint without reading its weights.

    Raises: as `load_pretrained`, but for contents of several formats and an unknown number of heads.
    """
    contents = read_contents(path)
    formats = matching_formats(contents) or [chosen_format(contents)]
    configs = [_config_and_heads(entry, contents) for entry in formats]
    files = [file for file in contents.path.rglob("*") if file.is_file()] if contents.is_folder else [contents.path]
    config, heads_known = configs[0]
    return Description(
        path=contents.path,
        formats=tuple(formats),
        size_bytes=sum(file.stat().st_size for file in files),
        config=config,
        heads_known=heads_known,
        predictions=tuple(config.prediction for config, _ in configs),
        sets=tuple(contents.weights),
        args=contents.args,
        num_parameters=num_parameters(config),
        num_projectors=sum(name.startswith(repa.PROJECTORS) for name in contents.any_weights),
    )


def _config_and_heads(entry: Format, contents: Contents) -> tuple[SiTConfig, bool]:
    weights = "model" if "model" in contents.weights and "ema" not in contents.weights else "ema"
    try:
        return entry.config(contents, Request(weights)), True
    except ValueError as error:
        try:
            return entry.config(contents, Request(weights, num_heads=1)), False
        except ValueError:
            raise error from None


def _kind(is_folder: bool) -> str:
    return "folder" if is_folder else "file"


def _seen(contents: Contents) -> str:
    """A few names, for a person to recognise."""
    if contents.is_folder:
        return f"the files {listed(contents.files, 6)}; {_class_name(contents)}"
    shapes = {name: tuple(tensor.shape) for name, tensor in contents.any_weights.items()}
    telling = [name for name in ("x_embedder.proj.weight", "final_layer.linear.weight") if name in shapes]
    names = [f"{name} {shapes[name]}" for name in telling or shapes]
    args = listed([f"{name}={contents.args[name]}" for name in ("model", "path_type") if name in contents.args])
    return f"{len(shapes)} tensors, with {listed(names)}; {args or 'no training argument that tells'}"


def _class_name(contents: Contents) -> str:
    of_config = contents.config.get("_class_name") or contents.pipeline.get("_class_name")
    return f"its configuration is of {of_config}" if of_config else "its configuration names no class"
