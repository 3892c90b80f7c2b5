"""A public checkpoint to a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from dar import load_pretrained, load_projectors
from distill.files import new_folder, write_folder

PROJECTORS_FILE = "projectors.safetensors"


@dataclass(frozen=True)
class Converted:
    """num_parameters: of the model. t_range: where it is defined."""

    folder: Path
    num_parameters: int
    t_range: tuple[float, float]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    weights: Literal["ema", "model"] = "ema",
    numerics: Literal["native", "original"] = "native",
    num_heads: int | None = None,
    format: str | None = None,
) -> Converted:
    """Load a checkpoint of SiT, REPA, DiT or diffusers and save a folder of ours; REPA's projectors in a file beside.

    Args:
        target: a new folder. weights: of a training file. format, num_heads: where the file does not tell.
        numerics: for diffusers: what diffusers computes (`native`), or the authors' code with these weights.
    """
    folder = new_folder(str(target), "target")
    model = load_pretrained(source, weights=weights, numerics=numerics, num_heads=num_heads, format=format)
    projectors = load_projectors(source, weights=weights)

    def fill(path: Path) -> None:
        model.save_pretrained(path)
        if projectors:
            save_file({name: tensor.contiguous() for name, tensor in projectors.items()}, path / PROJECTORS_FILE)

    write_folder(folder, fill)
    return Converted(folder, sum(p.numel() for p in model.parameters()), model.t_range)
