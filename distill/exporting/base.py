"""What is exported, to what, and who does it.

To export another family of models, or to another format: a file here with a function under `@register(family, to)`, an
import of it in `distill/exporting/__init__.py`, a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distill.config import CONFIG_FILE, read_values
from distill.errors import UserError
from distill.models.families import MODEL_FOLDERS, family_of
from distill.sampling import Sampler

PACKAGES = {"diffusers": ("diffusers",), "onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
"""By format, what has to be installed beside torch."""


@dataclass(frozen=True)
class Source:
    """sampler: a model with its way to draw, on the CPU. folder: of the model."""

    sampler: Sampler
    folder: Path

    @property
    def run(self) -> Path | None:
        """The folder of the run or training that made it; None where it lies elsewhere."""
        within = self.folder.name in MODEL_FOLDERS and (self.folder.parent / CONFIG_FILE).is_file()
        return self.folder.parent if within else None

    @property
    def config(self) -> dict[str, Any]:
        """Of that run; empty without one."""
        return {} if self.run is None else read_values(self.run / CONFIG_FILE)

    @property
    def name(self) -> str:
        """What to call it."""
        return (self.run or self.folder).resolve().name

    @property
    def is_student(self) -> bool:
        return self.sampler.role == "student"


@dataclass(frozen=True)
class Options:
    """vae: an autoencoder to put beside the model: a folder or a hub name in the local cache. int8: weights in 8 bits.

    licence: of the weights, as the hub calls it, such as "apache-2.0"; None where nobody said.
    """

    vae: str | None = None
    int8: bool = False
    licence: str | None = None


Exporter = Callable[[Source, Options, Path], list[str]]
"""What is exported, how, the folder to fill -> what the user should know of it, in lines."""
EXPORTERS: dict[tuple[str, str], Exporter] = {}


def register(family: str, to: str) -> Callable[[Exporter], Exporter]:
    """Make a function the export of models of `family` (`distill.models.FAMILIES`) to the format `to`."""

    def add(exporter: Exporter) -> Exporter:
        if (family, to) in EXPORTERS:
            raise ValueError(f"export of {family} to {to} is registered already")
        EXPORTERS[family, to] = exporter
        return exporter

    return add


def exporter_of(folder: Path, to: str) -> Exporter:
    """Raises: UserError for an unknown format, packages that are missing, or a family that is not exported so."""
    if to not in PACKAGES:
        raise UserError(f"--to must be one of {', '.join(PACKAGES)}; got {to!r}")
    family = family_of(folder)
    if (family, to) not in EXPORTERS:
        known = ", ".join(f"{name} to {form}" for name, form in EXPORTERS)
        raise UserError(f"{folder} is of the family {family}, which is not exported to {to}; there is {known}")
    check_packages(f"--to {to}", PACKAGES[to])
    return EXPORTERS[family, to]


def check_packages(what: str, packages: tuple[str, ...]) -> None:
    """Raises: UserError, which says what to install."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise UserError(f"{what} needs {', '.join(missing)}: pip install 'dar-distill[export]'")
