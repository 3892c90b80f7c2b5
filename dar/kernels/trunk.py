"""A tape as nodes of autograd.

    queries --_Queries--+-------------------------------+
                        |                               |
    v_i ------------_Source(v_i) ---- elsewhere     _Reader_l(v_i, ..) -- h_l
                        +-------------------------------+

Backward, `_Reader_l` keeps dh_l on the tape and returns nothing; the edges make autograd wait with `_Source` until
all readers of v_i are done, and with `_Queries` until all sources are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dar.kernels.gradients import Gradients
from dar.kernels.tape import Entry, Slots, Tape


class RoutedTrunk:
    """The routers of one forward pass: `source` puts a tensor on the tape, `read` mixes what is there.

    Args:
        queries: of all readers, (R, d) or (B, R, d). blocks: of readers 1 to R.
        scale: factor of the logits. eps: of the keys' RMSNorm.
    """

    def __init__(self, queries: Tensor, blocks: Sequence[range], scale: float, eps: float) -> None:
        self._tape = Tape(queries, Slots(blocks), scale, eps, keeps=torch.is_grad_enabled())
        self._backward = _Backward(self._tape)
        self._queries = _Queries.apply(queries, self._backward)

    def source(self, value: Tensor, last_reader: int) -> tuple[Tensor, Entry]:
        """What to use in place of `value` from now on, and its entry on the tape."""
        value = value.contiguous()
        entry = self._tape.enter(value, last_reader)
        return _Source.apply(value, self._queries, self._backward, entry), entry

    def read(self, reader: int, values: Sequence[Tensor], entries: Sequence[Entry], count: float) -> Tensor:
        """h (B, T, d) of `reader` over sources that were entered; weights add up to `count`."""
        return _Reader.apply(self._tape, self._backward, reader, entries, count, self._queries, *values)

    def weights(self, reader: int) -> Tensor:
        """(N, B, T), without gradient."""
        return self._tape.weights(reader)


class _Backward:
    """The gradients of the backward pass at hand: each begins anew, be it over the same graph."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._task = -1
        self._gradients: Gradients | None = None

    def __call__(self) -> Gradients:
        task = torch._C._current_graph_task_id()
        if self._gradients is None or task != self._task:
            self._task, self._gradients = task, Gradients(self._tape)
        return self._gradients


class _Queries(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, backward: _Backward) -> Tensor:
        ctx.pass_of, ctx.dtype = backward, queries.dtype
        ctx.set_materialize_grads(False)
        return queries.view_as(queries)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        return ctx.pass_of().of_queries().to(ctx.dtype), None


class _Source(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, queries: Tensor, backward: _Backward, entry: Entry) -> Tensor:
        ctx.pass_of, ctx.entry = backward, entry
        ctx.set_materialize_grads(False)
        return value.view_as(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_elsewhere: Any) -> tuple[Any, ...]:
        return ctx.pass_of().pull(ctx.entry, d_elsewhere[0]), None, None, None


class _Reader(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tape: Tape, backward: _Backward, reader: int, entries: Any, count: float, *_: Any) -> Tensor:
        ctx.pass_of, ctx.reader, ctx.count, ctx.num_inputs = backward, reader, count, 5 + len(_)
        ctx.set_materialize_grads(False)
        mixture = tape.read(reader, entries, count)
        # Not on the tape: here it is freed as soon as this node is done, and cannot keep the node alive.
        ctx.save_for_backward(mixture)
        return mixture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_mixture: Any) -> tuple[Any, ...]:
        if d_mixture[0] is not None:
            ctx.pass_of().receive(ctx.reader, d_mixture[0], *ctx.saved_tensors, ctx.count)
        return (None,) * ctx.num_inputs
