"""The training loop: progress, log, grids and checkpoints. A task defines what an update does."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.allocator import give_back_freed_memory
from distill.config import LoopConfig
from distill.errors import StoppedError, UserError
from distill.progress import logger, on_terminal, progress_bar
from distill.training.checkpoint import load_checkpoint, number_of
from distill.training.run_log import RunLog
from distill.training.saving import Saver
from distill.training.signals import Stop

COLUMNS = (
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("eta"),
    TimeRemainingColumn(elapsed_when_finished=False),
    TextColumn("{task.description}"),
)


class Task(Protocol):
    """Something that is trained update by update."""

    def update(self, step: int) -> dict[str, Any]:
        """Run update number `step` (from 0); returns values for the log, which may still be on the device."""
        ...

    def check(self) -> None:
        """Raise NonFiniteError if an update so far was not finite; it waits for the device."""
        ...

    def is_probed(self, step: int) -> bool:
        """Whether `probe` runs after update number `step` (from 1)."""
        ...

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """A slower evaluation: writes pictures into `folder`, returns values for the log."""
        ...

    @property
    def stopped(self) -> bool:
        """Whether the training ends here, before its last update."""
        ...

    def headline(self, values: dict[str, float]) -> str:
        """Text that shows the main values beside the progress bar."""
        ...


class Counter:
    """The number of finished updates and the seconds they took, saved in accelerate's checkpoints."""

    def __init__(self) -> None:
        self.step = 0
        self.elapsed_s = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "elapsed_s": self.elapsed_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        step, elapsed_s = state.get("step"), state.get("elapsed_s")
        if type(step) is not int or step < 0:
            raise ValueError(f"its step must be a whole number from 0; it is {step!r}")
        if not isinstance(elapsed_s, float) or not 0 <= elapsed_s < math.inf:
            raise ValueError(f"its elapsed_s must be finite and at least 0; it is {elapsed_s!r}")
        self.step, self.elapsed_s = step, elapsed_s


class TimeEstimate:
    """Elapsed and remaining time after each update.

    The first update also includes one-time work (the critic's warm-up), so the estimate ignores its duration.
    """

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._first: tuple[int, float] | None = None

    def text(self, step: int, elapsed_s: float) -> str:
        first_step, first_s = self._first = self._first or (step, elapsed_s)
        if step == first_step:
            return f"{elapsed_s:.0f} s"
        rate = (elapsed_s - first_s) / (step - first_step)
        return f"{elapsed_s:.0f} s, {rate * (self._num_steps - step):.0f} s left"


def is_due(step: int, every: int, config: LoopConfig) -> bool:
    """Whether what happens every so many updates, and after the last, does so after update number `step` (from 1)."""
    return step % every == 0 or step == config.steps


def is_logged(step: int, config: LoopConfig) -> bool:
    """Whether the log has a record after update number `step` (from 1), whatever else happens there."""
    return step == 1 or is_due(step, config.log_every, config)


def run_loop(
    task: Task,
    config: LoopConfig,
    accelerator: Accelerator,
    folder: Path,
    *,
    resume: bool = False,
    from_step: int | None = None,
) -> None:
    """Train `task` for `config.steps` updates; with `resume`, continue from its newest checkpoint or `from_step`'s.

    Raises: StoppedError where a signal asked to stop, after the update and its checkpoint; UserError, an update after
        it is known, where a checkpoint cannot be written; what the task raises.
    """
    counter = Counter()
    accelerator.register_for_checkpointing(counter)
    if resume or from_step is not None:
        path = load_checkpoint(accelerator, folder, from_step)
        if counter.step != number_of(path):
            raise UserError(f"--resume: {path} says that it is of step {counter.step}; it is damaged or was renamed")
    log = RunLog(folder, accelerator, counter.step)
    is_main = accelerator.is_main_process
    lines = not on_terminal()
    started = time.perf_counter() - counter.elapsed_s
    estimate = TimeEstimate(config.steps)
    with (
        progress_bar(COLUMNS, main_process=is_main) as progress,
        Stop(accelerator.num_processes) as stop,
        Saver(accelerator, folder, config.keep) as saver,
    ):
        bar = progress.add_task("", total=config.steps, completed=counter.step)
        stopping = False
        while counter.step < config.steps and not task.stopped and not stopping:
            values = task.update(counter.step)
            counter.step += 1
            counter.elapsed_s = time.perf_counter() - started
            stopping = stop.agreed(saver.failed)
            time_text = estimate.text(counter.step, counter.elapsed_s)
            is_probed = task.is_probed(counter.step)
            is_saved = stopping or is_due(counter.step, config.save_every, config)
            logged = is_probed or is_logged(counter.step, config)
            if is_saved or logged:
                task.check()
            try:
                if is_probed:
                    began = time.perf_counter()
                    values |= task.probe(counter.step, folder / "grids")
                    values["probe_s"] = time.perf_counter() - began
            finally:  # with what the probe found; whatever it may raise, the updates are not lost
                if is_saved or task.stopped:
                    saver.save(counter.step)
            if is_saved or is_probed:
                give_back_freed_memory()
            progress.update(bar, completed=counter.step)
            if logged:
                figures = {name: float(value) for name, value in values.items()}
                log.write(counter.step, {"elapsed_s": counter.elapsed_s, **figures})
                progress.update(bar, description=task.headline(figures))
                if lines and is_main:
                    logger.info(f"step {counter.step}/{config.steps}  {task.headline(figures)}  {time_text}")
        saver.wait()
        if stopping or stop.agreed():
            raise StoppedError(stop.name, counter.step)
