"""Model families: what makes a `Backbone` of a model folder.

To add one: a file with a loader under `@register("name", reads=..)`, and a test that calls
`distill.conformance.check_backbone`. A folder goes to the family registered last whose `reads` accepts it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dar import SiT
from distill.assets import resolve
from distill.models.backbone import Backbone

Loader = Callable[[Path], Backbone]


class Family(NamedTuple):
    """reads: whether a folder is of this family, by its configuration alone. load: of such a folder, on the CPU."""

    reads: Callable[[Path], bool]
    load: Loader


FAMILIES: dict[str, Family] = {}


def register(name: str, reads: Callable[[Path], bool]) -> Callable[[Loader], Loader]:
    """Let `load` make the backbone of every folder that `reads` accepts."""

    def add(load: Loader) -> Loader:
        if name in FAMILIES:
            raise ValueError(f"model family {name!r} is registered already")
        FAMILIES[name] = Family(reads, load)
        return load

    return add


@register("sit", reads=lambda folder: True)  # the first and last resort: it says what a folder lacks
def load_sit(folder: Path) -> SiT:
    """`dar.SiT`, plain or routed; public checkpoints become its folders by `dar-distill convert`."""
    return SiT.from_pretrained(folder)


def load_model(path: str | Path) -> Backbone:
    """The model in a folder, or the shipped teacher where path is `embedded`.

    Raises: FileNotFoundError and ValueError, naming the file and what is wrong with it.
    """
    folder = resolve(str(path), "teacher")
    family = next(family for family in reversed(FAMILIES.values()) if family.reads(folder))
    return family.load(folder)
