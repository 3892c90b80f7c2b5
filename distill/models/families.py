"""Model families: loaders that make a `Backbone` from a model folder.

To add one: a file with a loader under `@register("name", reads=..)`, and a test that calls
`distill.conformance.check_backbone`. A folder belongs to the most recently registered family whose `reads` accepts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from dar import SiT
from distill.assets import resolve
from distill.conditions import ClassLabels, Prompts, condition_of
from distill.conditions.prompts import REFERENCE_FILE
from distill.errors import UserError
from distill.files import check_whole
from distill.models.backbone import Backbone
from distill.models.stock.folders import is_stock, load_stock

Loader = Callable[[Path], Backbone]


class Family(NamedTuple):
    """reads: tells from a folder's configuration alone whether it belongs to this family. load: loads it on the CPU."""

    reads: Callable[[Path], bool]
    load: Loader


MODEL_FOLDERS = ("student", "teacher", "student_last")
FAMILIES: dict[str, Family] = {}


def register(name: str, reads: Callable[[Path], bool]) -> Callable[[Loader], Loader]:
    """Make `load` the loader of every folder that `reads` accepts."""

    def add(load: Loader) -> Loader:
        if name in FAMILIES:
            raise ValueError(f"model family {name!r} is registered already")
        FAMILIES[name] = Family(reads, load)
        return load

    return add


@register("sit", reads=lambda folder: True)  # accepts every folder, tried last; its error says what is missing
def load_sit(folder: Path) -> SiT:
    """Load a `dar.SiT`, with or without routing. `dar-distill convert` makes such folders from public checkpoints."""
    return SiT.from_pretrained(folder)


@register("stock", reads=is_stock)
def load_stock_folder(folder: Path) -> Backbone:
    """Load a transformer of diffusers: its own folder, a pipeline's, or one with routing, adapters, prompts beside."""
    return cast(Backbone, load_stock(folder))


def model_folder(path: str) -> Path:
    """The model folder that `path` names: the folder itself, or the student of a run, the teacher of a training run, or
    the shipped teacher for `embedded`.
    """
    folder = resolve(path, "teacher")
    return next((folder / name for name in MODEL_FOLDERS if (folder / name).is_dir()), folder)


def family_of(folder: Path) -> str:
    """The name of the family that a model folder belongs to."""
    return next(name for name, family in reversed(FAMILIES.items()) if family.reads(folder))


def load_model(path: str | Path, prompts: str | None = None) -> Backbone:
    """Load the model that `path` names, as in `model_folder`.

    prompts: a folder of encoded prompts, in place of those that the model's folder names.

    Raises: FileNotFoundError or ValueError, which names the file and what is wrong with it, such as weights that are
        not finite.
    """
    folder = model_folder(str(path))
    check_whole(folder)
    model = FAMILIES[family_of(folder)].load(folder)
    check_finite(model, str(path))
    if prompts is not None:
        set_prompts(model, Prompts.load(prompts))
    elif (folder / REFERENCE_FILE).is_file():
        set_prompts(model, Prompts.of_model_folder(folder))
    elif hasattr(model, "null_label") or hasattr(model, "condition"):  # not a model of prompts that was given none yet
        condition = condition_of(model)
        if isinstance(condition, ClassLabels):
            set_classes(model, ClassLabels.load(folder, condition.num_classes))
    return model


def set_prompts(model: Any, prompts: Prompts) -> None:
    """Let `condition_of(model)` be `prompts`. Raises: UserError for a model that is told something else."""
    if not hasattr(model, "set_prompts"):
        raise UserError(f"{prompts.folder}: this model takes {condition_of(model)}, not prompts")
    model.set_prompts(prompts)


def set_classes(model: Backbone, classes: ClassLabels) -> None:
    """Let `condition_of(model)`, and that of its copies, be `classes`."""
    cast(Any, model).condition = classes


def save_model(model: Backbone, folder: Path) -> None:
    """Write a folder that `load_model` reads, with the names of its classes, or where its prompts are."""
    model.save_pretrained(folder)
    condition = condition_of(model)
    if isinstance(condition, (ClassLabels, Prompts)):
        condition.save(folder)


def check_finite(model: object, path: str) -> None:
    """See that all weights are finite. Raises: UserError, which names the first that is not."""
    for name, parameter in cast(nn.Module, model).named_parameters():
        if not bool(parameter.isfinite().all()):
            count = int((~parameter.isfinite()).sum())
            raise UserError(f"{path}: {count} of {parameter.numel()} values of {name} are not finite; it is of no use")
