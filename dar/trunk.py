"""All routers of one forward pass as nodes of autograd, whose gradients wait for their sources.

    queries --_Queries--+-------------------------------+
                        |                               |
    v_i ------------_Source(v_i) ---- elsewhere     _Reader_l(v_i, ..) -- h_l
                        +-------------------------------+

What is computed is a tape's: in plain torch (`dar.tape`) or by the fused kernels (`dar.kernels.tape`). Backward,
`_Reader_l` hands dh_l over and returns nothing; the edges make autograd wait with `_Source` until all readers of v_i
are done, and with `_Queries` until all sources are. A source then gathers its gradient from all of its readers at
once, instead of having autograd add up one of each.

Nodes hold no tensor of the tape but by way of `_Backward`, which lets go of it as autograd lets go of a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.variable import Variable


class Tape(Protocol):
    """The routers of one forward pass, without gradients. Entries are sources as the tape knows them: `number` counts
    them from 0, `value` is one's tensor (B, T, d) in the memory and the dtype that the tape wants it in."""

    def enter(self, value: Tensor, readers: range) -> Any:
        """The entry of a source that `readers` will read, all or the first of them."""
        ...

    def read(self, reader: int, entries: Sequence[Any], count: float, base: Tensor | None = None) -> Tensor:
        """h (B, T, d) of `reader` with weights that add up to `count`; `base` as in `dar.route.mixed`."""
        ...

    def weights(self, reader: int) -> Tensor:
        """What `reader` gave its sources, (N, B, T)."""
        ...


class Gradients(Protocol):
    """One backward pass over a tape; a reader that it never reaches counts with dh = 0."""

    def receive(self, reader: int, d_mixture: Tensor, mixture: Tensor) -> None:
        """Take dh (B, T, d) of `reader` and its h."""
        ...

    def pull(self, number: int, d_elsewhere: Tensor | None) -> Tensor | None:
        """The gradient (B, T, d) of a source by all of its readers, and from elsewhere; None where there is none."""
        ...

    def of_queries(self) -> Tensor:
        """(R, d) or (B, R, d), complete when all sources have been pulled."""
        ...


class RoutedTrunk:
    """The routers of one forward pass: `source` puts a tensor on the tape, `read` mixes what is there.

    Args:
        queries: of all readers, (R, d) or (B, R, d); `tape` computes with them.
        gradients: begins a backward pass over the tape.
    """

    def __init__(self, queries: Tensor, tape: Tape, gradients: Callable[[], Gradients]) -> None:
        self._tape = tape
        self._backward = _Backward(gradients)
        self._queries = _Queries.apply(queries, self._backward)

    def source(self, value: Tensor, readers: range) -> tuple[Tensor, Any]:
        """What to use in place of `value` from now on, and its entry on the tape."""
        entry = self._tape.enter(value.detach(), readers)
        return _Source.apply(value, self._queries, self._backward, entry), entry

    def read(
        self,
        reader: int,
        values: Sequence[Tensor],
        entries: Sequence[Any],
        count: float,
        base: Tensor | None = None,
    ) -> Tensor:
        """h (B, T, d) of `reader` over sources that were entered; weights add up to `count`.

        base: as in `dar.route.mixed`, a constant: the gradient is that of the mixture.
        """
        return _Reader.apply(self._tape, self._backward, (reader, entries, count, base), self._queries, *values)

    def weights(self, reader: int) -> Tensor:
        """(N, B, T), without gradient."""
        return self._tape.weights(reader)


class _Backward:
    """The gradients of the backward pass at hand: each begins anew, be it over the same graph."""

    def __init__(self, begin: Callable[[], Gradients]) -> None:
        self._begin: Callable[[], Gradients] | None = begin
        self._task = -1
        self._gradients: Gradients | None = None

    def __call__(self) -> Gradients:
        task = torch._C._current_graph_task_id()
        if self._gradients is None or task != self._task:
            if self._begin is None:
                raise RuntimeError("a second backward pass over a routed model needs retain_graph=True in the first")
            self._task, self._gradients = task, self._begin()
            Variable._execution_engine.queue_callback(self._end)
        return self._gradients

    def _end(self) -> None:
        # A loss that is still in somebody's hands keeps its graph: nothing large may hang on that.
        self._gradients = None
        if not torch._C._autograd._get_current_graph_task_keep_graph():  # pyright: ignore[reportAttributeAccessIssue]
            self._begin = None


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
    def forward(ctx: Any, value: Tensor, queries: Tensor, backward: _Backward, entry: Any) -> Tensor:
        ctx.pass_of, ctx.number = backward, entry.number
        ctx.set_materialize_grads(False)
        return entry.value.view_as(entry.value)  # autograd gives back its gradient in the dtype of `value`

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_elsewhere: Any) -> tuple[Any, ...]:
        return ctx.pass_of().pull(ctx.number, d_elsewhere[0]), None, None, None


class _Reader(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tape: Tape, backward: _Backward, read: tuple[Any, ...], *_: Any) -> Tensor:
        ctx.pass_of, ctx.reader, ctx.num_inputs = backward, read[0], 3 + len(_)
        ctx.set_materialize_grads(False)
        mixture = tape.read(*read)
        # Not on the tape: here it is freed as soon as this node is done, and an output cannot keep the node alive.
        ctx.save_for_backward(mixture)
        return mixture

    @staticmethod
    def backward(ctx: Any, *d_mixture: Any) -> tuple[Any, ...]:
        # Grad mode is on under create_graph alone. `once_differentiable` would look at what is returned: nothing.
        if torch.is_grad_enabled():
            raise RuntimeError("a routed model's gradients have no gradients of their own (create_graph=True)")
        if d_mixture[0] is not None:
            ctx.pass_of().receive(ctx.reader, d_mixture[0], *ctx.saved_tensors)
        return (None,) * ctx.num_inputs
