"""A CUDA graph, as far as a CPU has one: kernels that run again in the same memory, without the Python around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Recorder(TorchDispatchMode):
    """Keeps every kernel with the tensors that it read and wrote; raises RuntimeError where a capture would."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if waits(func):
            raise RuntimeError(f"{func} makes the host wait for the device")
        if torch.Tag.nondeterministic_seeded in func.tags and "attention" not in str(func):
            raise RuntimeError(f"{func} draws a random number")
        for tensor in written(func, args, kwargs):
            if storage(tensor) not in self._made | self._before.keys():
                self._before[storage(tensor)] = (tensor.detach(), tensor.detach().clone())
        outputs = func(*args, **kwargs)
        given = {storage(tensor) for tensor in tensors_in((args, kwargs))}
        self._made |= {storage(tensor) for tensor in tensors_in(outputs)} - given
        self.kernels.append((func, args, kwargs, outputs))
        return outputs

    def undo(self) -> None:
        """What a capture does not do: change anything."""
        for tensor, values in self._before.values():
            tensor.copy_(values)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)  # what it casts is among the kernels
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.kernels:
            given = {storage(tensor) for tensor in tensors_in((args, kwargs))}
            for place, value in zip(tensors_in(outputs), tensors_in(func(*args, **kwargs)), strict=True):
                if storage(place) not in given:  # views and tensors written in place have their values already
                    place.detach().copy_(value)


class Launches(TorchDispatchMode):
    """Counts kernels that Python launches, and among them the reads of values, for which a host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.count += not func.is_view
            self.reads += waits(func)
        return func(*args, **(kwargs or {}))


def waits(func: Any) -> bool:
    return "_local_scalar_dense" in str(func) or "nonzero" in str(func)


def recorded(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """A `Capture` of `distill.models.launching`."""
    recorder = Recorder()
    with recorder:
        outputs = work()
    with torch.no_grad():
        recorder.undo()
    return outputs, recorder.replay


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that a kernel changes."""
    found: list[Tensor] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[i] if i < len(args) else kwargs.get(argument.name))
    return found
