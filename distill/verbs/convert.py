"""A public checkpoint to a model folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from dar import load_pretrained, load_projectors
from distill.conditions import ClassLabels
from distill.errors import UserError
from distill.files import new_folder, write_folder
from distill.models import save_model, set_classes
from distill.models.families import check_finite

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
    check_finite(model, str(source))
    set_classes(model, classes_beside(Path(source).expanduser(), model.null_label))
    projectors = load_projectors(source, weights=weights)

    def fill(path: Path) -> None:
        save_model(model, path)
        if projectors:
            save_file({name: tensor.contiguous() for name, tensor in projectors.items()}, path / PROJECTORS_FILE)

    write_folder(folder, fill)
    return Converted(folder, sum(p.numel() for p in model.parameters()), model.t_range)


def classes_beside(source: Path, num_classes: int) -> ClassLabels:
    """Names of classes from a pipeline's `id2label`, or from a folder of ours; without names if there are none.

    Raises: UserError if they are damaged.
    """
    index = source / "model_index.json"
    if not index.is_file():
        return ClassLabels.load(source, num_classes)
    try:
        names = {int(label): str(name) for label, name in json.loads(index.read_text()).get("id2label", {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{index} is damaged: {error}") from error
    if not names:
        return ClassLabels(num_classes)
    return ClassLabels.of_names([names.get(label, f"class {label}") for label in range(num_classes)])
