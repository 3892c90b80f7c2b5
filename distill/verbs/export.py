"""A model to a folder that others run."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distill.config import TeacherConfig
from distill.errors import UserError
from distill.exporting import Options, Source, exporter_of, push_folder
from distill.exporting.hub import check_name
from distill.files import new_folder, write_folder
from distill.models import model_folder
from distill.sampling import Sampler
from distill.sampling.samplers import load_sampler
from distill.verbs.load import vae_of


@dataclass(frozen=True)
class Exported:
    """folder: that was written, or would be. files: in it, with their bytes. notes: what to know of it, in lines.

    address: where it was pushed to; "" if nowhere.
    """

    folder: Path
    files: dict[str, int]
    notes: list[str]
    address: str = ""


def export(
    model: str | Path | Sampler,
    target: str | Path,
    to: Literal["diffusers", "onnx", "torch"] = "diffusers",
    *,
    vae: str | None = None,
    int8: bool = False,
    license: str | None = None,
    push: str | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> Exported:
    """Write `target`, a new folder that runs without this package, and push it to the hub if asked to.

    Args:
        model: what `load` takes, or what it returned: a student; for diffusers also a teacher.
        to: `diffusers`, a pipeline; `onnx` or `torch`, the few-step sampler as one graph.
        vae: decodes latents, for diffusers: a folder, or a hub name in the local cache; None for what the run's
            configuration names.
        int8: weights in 8 bits, for onnx. license: of the weights, as the hub calls it.
        push: NAMESPACE/NAME of a repository of the hub. public: where it is new, for all to see.
        dry_run: write and push nothing, but find out what would be.

    Raises: UserError for what cannot be exported so, a folder that is not empty, packages that are missing.
    """
    path = model.path if isinstance(model, Sampler) else str(model)
    if not path:
        raise UserError("export takes a model that lies in a folder; this one was not loaded from one")
    folder = new_folder(target, "target")
    if push is not None:
        check_name(push)
    exporter = exporter_of(model_folder(path), to)
    source = Source(load_sampler(path, TeacherConfig(path=path)), model_folder(path))
    source.sampler.model.eval().requires_grad_(False)
    options = Options(vae_of(vae, [path]) if to == "diffusers" else vae, int8, license)
    notes: list[str] = []

    def fill(partial: Path) -> None:
        notes.extend(exporter(source, options, partial))

    if dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            fill(Path(temporary))
            return Exported(folder, files_of(Path(temporary)), notes)
    write_folder(folder, fill)
    address = "" if push is None else push_folder(folder, push, public=public)
    return Exported(folder, files_of(folder), notes, address)


def files_of(folder: Path) -> dict[str, int]:
    """Bytes by name of all files below a folder."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(files)}
