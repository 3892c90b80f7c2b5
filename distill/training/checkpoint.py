"""Checkpoints: complete and atomic; the newest k are kept.

accelerate writes models, optimizers, random states and every object that a task registers. Of a model it writes only
trainable parameters: frozen parameters are loaded again from the model's folder, and several models may share them.
The folder gets its final name after everything is written, so a folder with that name is a complete checkpoint.

torch.distributed.checkpoint writes sharded models; every process writes its shard, and frozen parameters are included.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import SAFE_MODEL_NAME
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors import safe_open
from torch import Tensor, nn

from dar.checkpoints.pickles import check_pickles, only_allowed, refusal
from dar.checksums import CHECKSUMS_FILE, check_checksums, checksums, files_below
from distill.errors import NonFiniteError, UserError
from distill.files import seal_folder, temporary_name
from distill.files.whole import put_in_place, synchronise
from distill.models.parameters import frozen_parameters, trainable_parameters
from distill.models.sharding import local_shard
from distill.processes import Processes, is_lost_process
from distill.progress import logger

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


def save_checkpoint(accelerator: Accelerator, run_folder: Path, step: int, keep: int) -> Path:
    """Write the checkpoint of `step` and remove all but the newest `keep`.

    Raises: NonFiniteError if a trainable parameter is not finite; UserError if the checkpoint cannot be written.
    """
    _check_finite(accelerator, step)
    processes = Processes.all()
    final = checkpoint_path(run_folder, step)
    fresh = processes.from_main(lambda: _fresh(final))
    hook = accelerator.register_save_state_pre_hook(_drop_frozen)
    try:
        accelerator.save_state(str(fresh))
        accelerator.wait_for_everyone()
        _seal(fresh, processes)
    except (Exception, _sharded_checkpoint_error()) as error:  # each library has its own for a full disk
        shutil.rmtree(fresh, ignore_errors=True)
        if is_lost_process(_reason(error)):
            raise
        intact = next(reversed(checkpoints(run_folder)), None)
        raise UserError(
            f"the checkpoint of step {step} could not be written: {_reason(error)}; "
            f"{f'{intact} is intact' if intact else 'there is no earlier one'}"
        ) from error
    finally:
        hook.remove()
    if accelerator.is_main_process:
        put_in_place(fresh, final)
        for old in checkpoints(run_folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def _fresh(final: Path) -> Path:
    """A new name for what becomes `final`. What processes that were killed had begun beside it is removed."""
    for left in final.parent.glob(".step_????????*.partial"):
        shutil.rmtree(left)
    return temporary_name(final)


def _seal(folder: Path, processes: Processes) -> None:
    """Checksums of all files, to which every process has read its share, and all of it on the disk."""
    mine = files_below(folder)[processes.index :: processes.number]
    sums = checksums(folder, mine)
    for name in mine:
        synchronise(folder / name)
    shares = processes.from_all(sums)
    if processes.is_main:
        seal_folder(folder, {name: value for share in shares for name, value in share.items()})
    processes.from_main(lambda: None)  # all go on when it is done


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
    if not (path / CHECKSUMS_FILE).is_file():
        logger.info(f"{path} has no {CHECKSUMS_FILE}, as an earlier version wrote it: its files are not checked")
    _check_whole(path, found, Processes.all())
    states = sorted(path.glob("custom_checkpoint_*.pkl"))
    if len(states) != len(accelerator._custom_objects):
        raise UserError(
            f"--resume: {path} holds {len(states)} states beside models and optimizers, this version keeps "
            f"{len(accelerator._custom_objects)}: another version wrote it, and can go on from it"
        )
    hook = accelerator.register_load_state_pre_hook(_check_weights)
    try:
        with only_allowed():
            accelerator.load_state(str(path), strict=False)  # not strict: the checkpoint has no frozen parameters
    except _sharded_checkpoint_error() as error:
        reason = _reason(error)
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
    finally:
        hook.remove()
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
