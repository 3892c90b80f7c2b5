"""How work reaches a GPU: kernel by kernel from Python, or captured once as a CUDA graph and replayed.

A pass of a transformer is a thousand kernels and more, which Python launches more slowly than a GPU computes them. A
graph is launched as one. It computes what was captured, bit for bit, from what lies in the same memory now.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from distill.conditions import ConditionBatch, take_rows
from distill.progress import logger

Work = Callable[..., Any]
"""Tensors, alone or in tuples and dictionaries -> tensors."""
Launch = Callable[[Work], Work]
Capture = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""Work without arguments -> its outputs, and what computes them anew, in place."""

EAGER_VARIABLE = "DAR_DISTILL_EAGER"


def eager(work: Work) -> Work:
    """The launch of every kernel by itself."""
    return work


def cuda_graph(work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Capture `work` without running it. Graphs share memory, for no two are replayed at once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        outputs = work()
    return outputs, graph.replay


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()


class Captured:
    """`work`, captured once for each set of shapes of its inputs.

    The first call runs `work` as it is, which compiles kernels and makes what is made once; the second captures it.

    Args:
        work: it may change tensors that keep their place in memory (parameters, moments of an optimizer), but reads no
            value of a tensor, draws no random number and keeps nothing in Python that differs from call to call.
        strict: raise where the capture fails; otherwise the log says so, and `work` runs as it is from then on.
    """

    def __init__(self, work: Work, capture: Capture = cuda_graph, *, strict: bool = False) -> None:
        self._work, self._capture, self._strict = work, capture, strict
        self._graphs: dict[Any, Work | None] = {}
        self._failed = False

    def __call__(self, *inputs: Any) -> Any:
        """The outputs of `work`, which no later call changes."""
        tensors, structure = pytree.tree_flatten(inputs)
        if self._failed or _is_capturing():
            return self._work(*inputs)
        key = (structure, torch.is_grad_enabled(), *_autocast(tensors), *((t.shape, t.dtype) for t in tensors))
        if key not in self._graphs:
            self._graphs[key] = None
            return self._work(*inputs)
        graph = self._graphs[key] or self._captured(key, inputs)
        return graph(tensors) if graph else self._work(*inputs)

    def _captured(self, key: Any, inputs: Any) -> Work | None:
        held = pytree.tree_map(torch.clone, inputs)
        try:
            with _without_cached_casts():
                outputs, replay = self._capture(lambda: self._work(*held))
        except RuntimeError as error:
            if self._strict:
                raise
            name = getattr(self._work, "__qualname__", type(self._work).__name__)
            logger.warning(f"{name} cannot be a CUDA graph, so its kernels are launched one by one: {error}")
            self._failed = True
            return None
        places = pytree.tree_leaves(held)

        def graph(tensors: list[Tensor]) -> Any:
            for place, tensor in zip(places, tensors, strict=True):
                place.copy_(tensor)
            replay()
            return pytree.tree_map(torch.clone, outputs)

        self._graphs[key] = graph
        return graph


class CapturedModel:
    """A model's answers without gradient, on a GPU as CUDA graphs.

    Fewer rows than it has met are filled up to the next larger number of rows, as in the last batch of many: each row
    is computed independently of the others.
    """

    def __init__(self, model: Any, capture: Capture = cuda_graph) -> None:
        self._model, self._captured = model, Captured(model, capture)
        self._sizes: set[int] = set()

    def __call__(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        if torch.is_grad_enabled() or not _is_graphed(x_t):
            return self._model(x_t, t, y)
        num = len(x_t)
        size = min((size for size in self._sizes if size >= num), default=num)
        self._sizes.add(size)
        if size == num:
            return self._captured(x_t, t, y)
        rows = torch.arange(size, device=x_t.device).clamp(max=num - 1)
        return self._captured(x_t[rows], t[rows], take_rows(y, rows))[:num]


def _is_graphed(x: Tensor) -> bool:
    return x.is_cuda and not os.environ.get(EAGER_VARIABLE)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _autocast(tensors: list[Tensor]) -> tuple[bool, torch.dtype]:
    device = tensors[0].device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


@contextmanager
def _without_cached_casts() -> Iterator[None]:
    """Casts that autocast keeps until its end must not become a part of a graph, nor those of a graph outlive it."""
    torch.clear_autocast_cache()
    yield
    torch.clear_autocast_cache()
