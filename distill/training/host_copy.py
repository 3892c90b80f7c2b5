"""Copies of a training's state on the host, from which it is written while the training goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from distill.models.sharding import local_shard

CGROUPS = Path("/sys/fs/cgroup")


class HostCopy:
    """Copies of nested containers of tensors. The memory of one is used again by the next: so there is one at a time.

    Memory that the process never had takes many times as long to fill.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[Any, ...], Tensor] = {}

    def of(self, state: Any, *place: Any) -> Any:
        """A copy that nothing else changes until the next; shards stay shards, each tensor has memory of its own."""
        if isinstance(state, Tensor):
            return self._tensor(state.detach(), place)
        if isinstance(state, dict):
            return {name: self.of(value, *place, name) for name, value in state.items()}
        if type(state) in (list, tuple):
            return type(state)(self.of(value, *place, i) for i, value in enumerate(state))
        return copy.deepcopy(state)

    def more_bytes(self, state: Any) -> int:
        """Bytes that a copy of `state` takes beyond those that the last one holds."""
        there = sum(local_shard(tensor).nbytes for tensor in self._copies.values())
        return max(0, sum(local_shard(tensor).nbytes for tensor in _tensors(state)) - there)

    def _tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        before = self._copies.get(place)
        if before is not None and (before.shape, before.dtype) == (tensor.shape, tensor.dtype):
            return before.copy_(tensor)
        made = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._copies[place] = made
        return made


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def own_group() -> str:
    """The control group of this process, of version 2, relative to `CGROUPS`. Raises: OSError where there is none."""
    return Path("/proc/self/cgroup").read_text().partition("0::/")[2].strip()


def free_host_memory() -> int:
    """Bytes that this process may still take: of the machine, and of the control group it runs in, if that says."""
    free = psutil.virtual_memory().available
    with suppress(OSError):  # no control groups, or those of version 1
        group = CGROUPS / own_group()
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            details = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / "memory.current").read_text()) - int(details["inactive_file"])
            free = min(free, int(limit) - used)
    return free
