"""The folder of a run: who may write into it, and what it was started with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distill.config_io import config_to_yaml
from distill.errors import UserError
from distill.files import write_text
from distill.training.checkpoint import checkpoints

CONFIG_FILE = "config.yaml"


def claim_folder(folder: Path, config: Any, *, resume: bool) -> None:
    """Save the resolved configuration into a new folder, or see that a resumed run is the same run.

    Raises: UserError where the folder holds another run, or `resume` finds none or a different configuration.
    """
    saved = folder / CONFIG_FILE
    text = config_to_yaml(config)
    if resume:
        if not saved.is_file():
            raise UserError(f"--resume: {folder} holds no run (no {CONFIG_FILE})")
        if saved.read_text() != text:
            different = [line for line in text.splitlines() if line not in saved.read_text().splitlines()]
            raise UserError(
                f"--resume: the configuration differs from {saved}: {'; '.join(s.strip() for s in different[:3])}"
            )
        if not checkpoints(folder):
            raise UserError(f"--resume: {folder} holds no checkpoint yet; remove it and start anew")
        return
    if folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"output = {folder} is not empty; choose another, remove it, or continue the run in it with --resume"
        )
    write_text(saved, text)


def versions() -> dict[str, str]:
    """Python and the libraries that figures depend on."""
    names = ("dar-distill", "torch", "accelerate", "torch-fidelity", "lpips", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
