"""The processes that one command was started as, and the device of each, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import gather, parse_flag_from_env
from torch import Tensor

from distill.errors import SAID_BY_MAIN, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes that draw one set of images together; all make the same calls with the same arguments.

    group: torch's, in which values are exchanged; None for the one of everything else.
    """

    index: int = 0
    number: int = 1
    group: Any = None

    @classmethod
    def all(cls) -> Processes:
        """All that were started with this one. Raises: as `check_started`."""
        state = _state()
        check_started(state.num_processes)
        return cls(state.process_index, state.num_processes)

    def apart(self) -> Processes:
        """The same in a group of its own on the host, for a thread that waits for no device and for no other thread."""
        return self if self.number == 1 else replace(self, group=torch.distributed.new_group(backend="gloo"))

    @property
    def is_main(self) -> bool:
        return self.index == 0

    def share(self, first: int, last: int) -> Tensor:
        """The part of first, .., last - 1 that this process draws; all parts are of one size, so the last may recur."""
        each = -(-(last - first) // self.number)
        return (first + self.index * each + torch.arange(each)).clamp(max=last - 1)

    def gather(self, images: Tensor) -> Tensor:
        """The parts of all processes, one after the other."""
        if self.number == 1:
            return images
        gathered = gather(images)
        assert isinstance(gathered, Tensor)
        return gathered

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the main process, to all of them; what it raises there is raised in all."""
        if self.number == 1:
            return make()
        made: tuple[T | None, Exception | None] = None, None
        if self.is_main:
            try:
                made = make(), None
            except Exception as error:  # whatever it is, the others must not wait for a result
                made = None, error
        value, error = self.agreed(made)
        if error is not None:
            if not self.is_main:
                error.add_note(SAID_BY_MAIN)
            raise error
        return cast(T, value)

    def main_alone(self, make: Callable[[], T]) -> T | None:
        """What `make` returns, which stays in the main process; None in others. What it raises is raised in all."""
        made: list[T] = []
        self.from_main(lambda: made.append(make()))
        return made[0] if made else None

    def from_all(self, value: T) -> list[T]:
        """The values of all processes, in each of them."""
        values: list[Any] = [value] * self.number
        if self.number > 1:
            torch.distributed.all_gather_object(values, value, group=self.group)
        return values

    def agreed(self, value: T) -> T:
        """The main process's `value`."""
        values = [value]
        if self.number > 1:
            torch.distributed.broadcast_object_list(values, src=0, group=self.group)
        return values[0]


ALONE = Processes()


def _state() -> PartialState:
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def default_device() -> torch.device:
    """The device that accelerate selects for this process."""
    device = _state().device
    assert device is not None
    return device


def is_lost_process(error: BaseException) -> bool:
    """Whether an operation of all processes failed because one of them, or the way to it, is gone."""
    if isinstance(error, torch.distributed.DistError):
        return True
    # gloo's errors have no type of their own.
    return isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo/", "NCCL", "ProcessGroup"))


def leave_others() -> None:
    """End the group of processes, if there are several: who waits in it for the main one alone would be ended by its
    time limit.
    """
    state = _state()
    state.wait_for_everyone()
    state.destroy_process_group()


def check_started(num_processes: int) -> None:
    """Raise UserError if more processes were started than the `num_processes` that found each other."""
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > num_processes:
        raise UserError(
            f"{started} processes were started, and each would work alone: accelerate finds no GPU; on CPUs set "
            "ACCELERATE_USE_CPU=true"
        )
