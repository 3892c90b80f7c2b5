"""Checkpoints: complete, atomic, the newest k kept.

accelerate writes models, optimizers and random states; what else a task registers goes with them. The
folder gets its final name only when everything is in it, so a name that exists is a whole checkpoint.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError

from distill.errors import UserError

FOLDER = "checkpoints"


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step_{step:08d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted((run_folder / FOLDER).glob("step_????????"))


def save_checkpoint(accelerator: Accelerator, run_folder: Path, step: int, keep: int) -> Path:
    """Write the checkpoint of `step` and drop all but the newest `keep`."""
    final = checkpoint_path(run_folder, step)
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap a full disk
        shutil.rmtree(partial, ignore_errors=True)
        intact = next(reversed(checkpoints(run_folder)), None)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {error}; "
            f"{f'{intact} is intact' if intact else 'there is no earlier one'}"
        ) from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, run_folder: Path) -> Path:
    """Load the newest checkpoint into everything that was prepared or registered.

    Raises: UserError where there is none.
    """
    found = checkpoints(run_folder)
    if not found:
        raise UserError(f"--resume: {run_folder / FOLDER} holds no checkpoint")
    accelerator.load_state(str(found[-1]))
    return found[-1]
