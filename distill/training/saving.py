"""Writing checkpoints while the training goes on: complete and atomic; the newest k are kept.

The training waits for a copy of its state on the host. From that a thread writes files, hashes them, and gives the
folder its name, so that the newest checkpoint is whole at any time.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from dar.checksums import checksums, files_below
from distill.errors import SAID_BY_MAIN, NonFiniteError, UserError
from distill.files import seal_folder, temporary_name
from distill.files.whole import put_in_place, synchronise
from distill.models.parameters import trainable_parameters
from distill.models.sharding import local_shard
from distill.processes import Processes, is_lost_process
from distill.progress import logger
from distill.training.checkpoint import checkpoint_path, checkpoints, reason_of, sharded_checkpoint_error
from distill.training.host_copy import HostCopy, free_host_memory
from distill.training.state import state_of, write_state

SAID_S = 1.0  # a shorter wait is not worth a line
T = TypeVar("T")


class Saver:
    """Writes checkpoints of `run_folder` one after the other, of which the newest `keep` stay.

    A context, at whose end none is being written any more. What goes wrong in the thread is raised by the next `save`
    or `wait`, in all processes; `failed` says so before. Where the host has no memory for a copy the training waits.
    """

    def __init__(self, accelerator: Accelerator, run_folder: Path, keep: int) -> None:
        self._accelerator, self._run_folder, self._keep = accelerator, run_folder, keep
        self._processes = Processes.all().apart()
        self._copy = HostCopy()
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._writing: tuple[int, Future[None]] | None = None
        self._given_up = False
        self._short_of_memory = False

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._given_up = kind is not None and not issubclass(kind, Exception)  # someone wants this to end at once
        try:
            if not self._given_up:
                self.wait()
        except Exception as other:
            if error is None:
                raise
            logger.error(str(other))  # beside what the training ended with
        finally:
            self._pool.shutdown()

    @property
    def failed(self) -> bool:
        """Whether the one that is being written can't be, as far as this process knows."""
        return self._writing is not None and self._writing[1].done() and self._writing[1].exception() is not None

    def save(self, step: int) -> None:
        """Begin to write the checkpoint of `step`, when the one before is whole.

        Raises: NonFiniteError if a trainable parameter is not finite; as `wait`.
        """
        self.wait()
        _check_finite(self._accelerator, step)
        began = time.perf_counter()
        state = state_of(self._accelerator)
        fits = self._fits(state)
        files = self._copy.of(state) if fits else state
        held_s = time.perf_counter() - began
        self._writing = step, self._pool.submit(self._write, step, files, began, held_s)
        if not fits:
            self.wait()

    def wait(self) -> None:
        """Let the checkpoint that is being written become whole. Raises: UserError if it cannot be written."""
        if self._writing is None:
            return
        step, writing = self._writing
        began = time.perf_counter()
        try:
            writing.result()
        finally:
            if writing.done():
                self._writing = None
        waited_s = time.perf_counter() - began
        if waited_s > SAID_S and self._processes.is_main:
            logger.info(f"waited {waited_s:.1f} s for the checkpoint of step {step}")

    def _fits(self, state: dict[str, Any]) -> bool:
        each = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self._accelerator.is_fsdp2 else 1
        needed, free = each * self._copy.more_bytes(state), free_host_memory()
        fits = needed <= free
        if not fits and not self._short_of_memory:
            self._short_of_memory = True
            logger.info(
                f"the training waits for its checkpoints: a copy takes {needed / 1e9:.1f} GB on the host, which has "
                f"{free / 1e9:.1f} GB"
            )
        return fits

    def _write(self, step: int, files: dict[str, Any], began: float, held_s: float) -> None:
        """In the thread. Raises: UserError in all processes where something went wrong in one of them."""
        final = checkpoint_path(self._run_folder, step)
        fresh = temporary_name(final)
        try:
            fresh = self._processes.from_main(lambda: _made(final))
            self._in_all(lambda: write_state(fresh, files, self._processes.group))
            shares = self._in_all(lambda: _on_disk(fresh, self._processes))
            sums = {name: value for share in shares for name, value in share.items()}
            self._processes.from_main(lambda: self._finish(fresh, final, sums))
        except Exception as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if is_lost_process(error):
                raise
            intact = next(reversed(checkpoints(self._run_folder)), None)
            refused = UserError(
                f"the checkpoint of step {step} could not be written: {error}; "
                f"{f'{intact} is intact' if intact else 'there is no earlier one'}"
            )
            if not self._processes.is_main:
                refused.add_note(SAID_BY_MAIN)
            raise refused from error
        if self._processes.is_main:
            logger.info(f"{final} is whole: {held_s:.1f} s of the training, {time.perf_counter() - began:.1f} s in all")

    def _in_all(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns in each process; what it raises in one is raised in all."""
        done: tuple[T | None, str | None] = None, None
        try:
            if self._given_up:
                raise InterruptedError("the run was ended")
            done = work(), None
        except (Exception, sharded_checkpoint_error()) as error:  # each library has its own for a full disk
            reason = reason_of(error)
            if isinstance(reason, Exception) and is_lost_process(reason):
                raise reason from error
            done = None, " ".join(str(reason).split())
        everyone = self._processes.from_all(done)
        problem = next((said for _, said in everyone if said is not None), None)
        if problem is not None:
            raise OSError(problem)
        return [cast(T, value) for value, _ in everyone]

    def _finish(self, fresh: Path, final: Path, sums: dict[str, str]) -> None:
        seal_folder(fresh, sums)
        put_in_place(fresh, final)
        for old in checkpoints(self._run_folder)[: -self._keep]:
            shutil.rmtree(old)


def _made(final: Path) -> Path:
    """A new folder that becomes `final`. What processes that were killed had begun beside it is removed."""
    for left in final.parent.glob(".step_????????*.partial"):
        shutil.rmtree(left)
    fresh = temporary_name(final)
    fresh.mkdir(parents=True)
    return fresh


def _on_disk(folder: Path, processes: Processes) -> dict[str, str]:
    """Checksums of this process's share of the files, which then are on the disk."""
    mine = files_below(folder)[processes.index :: processes.number]
    sums = checksums(folder, mine)
    for name in mine:
        synchronise(folder / name)
    return sums


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
