"""Checkpoints: complete and atomic; the newest k are kept.

accelerate writes models, optimizers, random states and every object that a task registers. Of a model it writes only
trainable parameters: frozen parameters are loaded again from the model's folder, and several models may share them.
The folder gets its final name after everything is written, so a folder with that name is a complete checkpoint.

torch.distributed.checkpoint writes sharded models; every process writes its shard, and frozen parameters are included.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_MODEL_NAME
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dar.checkpoints.pickles import check_pickles, only_allowed, refusal
from distill.errors import NonFiniteError, UserError
from distill.models.parameters import frozen_parameters, trainable_parameters
from distill.models.sharding import local_shard

FOLDER = "checkpoints"


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / FOLDER / f"step_{step:08d}"


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted((run_folder / FOLDER).glob("step_????????"))


def has_checkpoint(run_folder: Path, step: int) -> bool:
    return checkpoint_path(run_folder, step).is_dir()


def save_checkpoint(accelerator: Accelerator, run_folder: Path, step: int, keep: int) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`.

    Raises: NonFiniteError if a trainable parameter is not finite; UserError if the checkpoint cannot be written.
    """
    _check_finite(accelerator, step)
    final = checkpoint_path(run_folder, step)
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    hook = accelerator.register_save_state_pre_hook(_drop_frozen)
    try:
        accelerator.save_state(str(partial))
    except (
        OSError,
        RuntimeError,
        SafetensorError,
        _sharded_checkpoint_error(),
    ) as error:  # a full disk
        shutil.rmtree(partial, ignore_errors=True)
        intact = next(reversed(checkpoints(run_folder)), None)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {_reason(error)}; "
            f"{f'{intact} is intact' if intact else 'there is no earlier one'}"
        ) from error
    finally:
        hook.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        for old in checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def _check_finite(accelerator: Accelerator, step: int) -> None:
    # No loss is computed after the last optimizer step, so no loss would show that it failed.
    parameters = [
        local_shard(p.detach()) for model in accelerator._models for p in trainable_parameters(model).values()
    ]
    broken = sum(not bool(parameter.isfinite().all()) for parameter in parameters)
    everywhere = accelerator.reduce(torch.tensor(float(broken), device=accelerator.device))
    assert isinstance(everywhere, Tensor)
    if everywhere:
        raise NonFiniteError(f"the weights are not finite after step {step}")


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
    states = sorted(path.glob("custom_checkpoint_*.pkl"))
    if len(states) != len(accelerator._custom_objects):
        raise UserError(
            f"--resume: {path} holds {len(states)} states beside models and optimizers, this version keeps "
            f"{len(accelerator._custom_objects)}: another version wrote it, and can go on from it"
        )
    check_pickles(path)
    hook = accelerator.register_load_state_pre_hook(_check_weights)
    try:
        with only_allowed():
            accelerator.load_state(str(path), strict=False)  # not strict: the checkpoint has no frozen parameters
    except _sharded_checkpoint_error() as error:
        reason = _reason(error)
        if isinstance(reason, UnpicklingError):
            raise UserError(f"--resume: {refusal(path, reason)}") from error
        raise UserError(f"--resume: {path} does not fit this run: {reason}") from error
    except (SafetensorError, EOFError, RuntimeError, UnpicklingError) as error:
        raise UserError(f"--resume: {path} is damaged: {error}; remove it to go on from the one before") from error
    finally:
        hook.remove()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        for later in found[found.index(path) + 1 :]:
            shutil.rmtree(later)
    return path


def _sharded_checkpoint_error() -> type[BaseException]:
    """The exception of torch.distributed.checkpoint, which takes a second to import."""
    from torch.distributed.checkpoint.api import CheckpointException

    return CheckpointException


def _reason(error: BaseException) -> BaseException:
    """One of the errors that `error` collects from all processes, or `error` itself."""
    failures: dict[int, Any] = getattr(error, "failures", {})
    return next((cause for cause, _ in failures.values()), error)


def _drop_frozen(models: Sequence[nn.Module], weights: Sequence[dict[str, Tensor]], folder: str) -> None:
    # For sharded models accelerate passes no weights here: they are already written.
    for model, state in zip(models, weights, strict=bool(weights)):
        for name in frozen_parameters(model):
            del state[name]


def _check_weights(models: Sequence[nn.Module], folder: str) -> None:
    for i, model in enumerate(models):
        path = Path(folder) / f"{SAFE_MODEL_NAME}{f'_{i}' if i else ''}.safetensors"
        with safe_open(path, framework="pt") as file:
            different = set(file.keys()) ^ (set(model.state_dict()) - set(frozen_parameters(model)))
        if different:
            raise UserError(
                f"--resume: {path} is of another model than this; they differ in {', '.join(sorted(different)[:3])}"
            )
