"""Checkpoints: where they are, and going on from one. `saving.py` writes them.

A folder gets its final name after everything is written, so a folder with that name is a complete checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import safe_open
from torch import nn

from dar.checkpoints.pickles import check_pickles, only_allowed, refusal
from dar.checksums import CHECKSUMS_FILE, check_checksums
from distill.errors import UserError
from distill.files import say_unchecked
from distill.models.parameters import frozen_parameters
from distill.processes import Processes, is_lost_process
from distill.training.state import load_state, weights_file

FOLDER = "checkpoints"


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step_{step:08d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_folder / FOLDER).glob("step_????????"))


def number_of(checkpoint: Path) -> int:
    """The number of the update after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def has_checkpoint(run_folder: Path, step: int) -> bool:
    return checkpoint_path(run_folder, step).is_dir()


def load_checkpoint(accelerator: Accelerator, run_folder: Path, step: int | None = None) -> Path:
    """Load the newest checkpoint, or that of `step`, into everything that was prepared or registered.

    Later ones than the one of `step` are removed when it is loaded, since the run goes another way from there.

    Raises: UserError if there is no such checkpoint, if it is damaged, if its parameters are not the trainable ones
        of this run, or if it was written with FSDP and is loaded without FSDP or vice versa; ValueError if one of its
        files would run code when loaded.
    """
    found = checkpoints(run_folder)
    if not found:
        raise UserError(f"--resume: {run_folder / FOLDER} holds no checkpoint")
    path = checkpoint_path(run_folder, step) if step is not None else found[-1]
    if path not in found:
        raise UserError(f"--from {step}: {run_folder} has {', '.join(other.name for other in found)}")
    sharded = any(path.glob(f"{FSDP_MODEL_NAME}*"))
    if sharded != accelerator.is_fsdp2:
        raise UserError(f"--resume: {path} was written {'with' if sharded else 'without'} FSDP; resume it likewise")
    if not (path / CHECKSUMS_FILE).is_file():
        say_unchecked(path)
    _check_whole(path, found, Processes.all())
    states = sorted(path.glob("custom_checkpoint_*.pkl"))
    if len(states) != len(accelerator._custom_objects):
        raise UserError(
            f"--resume: {path} holds {len(states)} states beside models and optimizers, this version keeps "
            f"{len(accelerator._custom_objects)}: another version wrote it, and can go on from it"
        )
    try:
        if not sharded:
            _check_weights(accelerator._models, path)
        with only_allowed():
            load_state(accelerator, path)
    except sharded_checkpoint_error() as error:
        reason = reason_of(error)
        if isinstance(reason, UnpicklingError):
            raise UserError(f"--resume: {refusal(path, reason)}") from error
        raise UserError(f"--resume: {path} does not fit this run: {reason}") from error
    except UserError:
        raise
    except Exception as error:  # torch and safetensors meet arbitrary bytes with arbitrary exceptions
        if is_lost_process(error):
            raise
        reason = f"{path} is damaged or of another model: {error}{_way_out(path, found)}"
        raise UserError(f"--resume: {reason}") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for later in found[found.index(path) + 1 :]:
            shutil.rmtree(later)
    return path


def _check_whole(path: Path, found: Sequence[Path], processes: Processes) -> None:
    """See that no file of a checkpoint is damaged or asks to run code; all processes look at a share each."""
    problem = _problem(path, (processes.index, processes.number))
    problems = [said for said in processes.from_all(problem) if said]
    if problems:
        processes.from_main(partial(_refuse, path, found, problems[0]))


def _refuse(path: Path, found: Sequence[Path], problem: str) -> None:
    raise UserError(f"--resume: {problem}{_way_out(path, found)}")


def _problem(path: Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with the files of a checkpoint."""
    try:
        check_pickles(path)
        check_checksums(path, share)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _way_out(path: Path, found: Sequence[Path]) -> str:
    """The newest checkpoint before `path` that is whole, and how to go on from it."""
    before = [other for other in found if other < path]
    whole = next((other for other in reversed(before) if _problem(other) is None), None)
    if whole is None:
        return f"; {'none before it is whole' if before else 'there is none before it'}"
    return f"; {whole.name} before it is whole, go on from it with --from {number_of(whole)}"


def sharded_checkpoint_error() -> type[BaseException]:
    """The exception of torch.distributed.checkpoint, which takes a second to import."""
    from torch.distributed.checkpoint.api import CheckpointException

    return CheckpointException


def reason_of(error: BaseException) -> BaseException:
    """One of the errors that `error` collects from all processes, or `error` itself."""
    failures: dict[int, Any] = getattr(error, "failures", {})
    return next((cause for cause, _ in failures.values()), error)


def _check_weights(models: Sequence[nn.Module], folder: Path) -> None:
    for i, model in enumerate(models):
        path = folder / weights_file(i)
        with safe_open(path, framework="pt") as file:
            different = set(file.keys()) ^ (set(model.state_dict()) - set(frozen_parameters(model)))
        if different:
            raise UserError(
                f"--resume: {path} is of another model than this; they differ in {', '.join(sorted(different)[:3])}"
            )
