"""`torch.ops.dar.route`: one router as an operator that torch.compile, autograd and checkpointing understand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


@torch.library.custom_op("dar::route", mutates_args=())
def _route(
    sources: list[Tensor], query: Tensor, scale: float, eps: float, count: float
) -> tuple[Tensor, Tensor, Tensor]:
    """h (B, T, d), logits (N, B, T) and lse (B, T), which carries no gradient; see `dar.kernels.forward.finish`."""
    from dar.kernels import forward

    logits = sources[0].new_empty(len(sources), 1, *sources[0].shape[:2], dtype=torch.float32)
    with torch.cuda.device_of(sources[0]):  # Triton launches on the current device
        mixture, lse = forward.finish(sources, _rows_side_by_side(query), logits, scale, eps, count)
    return mixture, logits.squeeze(1), lse


@_route.register_fake
def _(sources: list[Tensor], query: Tensor, scale: float, eps: float, count: float) -> tuple[Tensor, Tensor, Tensor]:
    shape = sources[0].shape
    logits = sources[0].new_empty(len(sources), *shape[:2], dtype=torch.float32)
    return sources[0].new_empty(shape), logits, logits.new_empty(shape[:2])


def route(
    sources: list[Tensor], query: Tensor, scale: float, eps: float, count: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator. Raises: RuntimeError under forward-mode differentiation, where it would give no tangent."""
    in_forward_mode = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if in_forward_mode and any(forward_ad.unpack_dual(t).tangent is not None for t in (*sources, query)):
        raise RuntimeError("dar::route has no forward-mode derivative")
    return _route(sources, query, scale, eps, count)


@torch.library.custom_op("dar::route_backward", mutates_args=())
def route_backward(
    sources: list[Tensor],
    query: Tensor,
    kept: list[Tensor],
    d_mixture: Tensor,
    d_logits: Tensor | None,
    scale: float,
    eps: float,
    count: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the sources, stacked (N, B, T, d), and of the query in float32."""
    from dar.kernels import backward

    mixture, logits, lse = kept
    query = _rows_side_by_side(query)
    with torch.cuda.device_of(mixture):
        return backward.route_backward(sources, query, (mixture, logits, lse), d_mixture, d_logits, scale, eps, count)


@route_backward.register_fake
def _(
    sources: list[Tensor],
    query: Tensor,
    kept: list[Tensor],
    d_mixture: Tensor,
    d_logits: Tensor | None,
    scale: float,
    eps: float,
    count: float,
) -> tuple[Tensor, Tensor]:
    return kept[0].new_empty(len(sources), *kept[0].shape), query.new_empty(query.shape, dtype=torch.float32)


def _rows_side_by_side(query: Tensor) -> Tensor:
    return query if query.stride(-1) == 1 else query.contiguous()


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    sources, query, scale, eps, count = inputs
    ctx.save_for_backward(query, *output, *sources)
    ctx.options = scale, eps, count
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, d_mixture: Tensor | None, d_logits: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    query, mixture, logits, lse, *sources = ctx.saved_tensors
    if d_mixture is None:
        d_mixture = torch.zeros_like(mixture)
    kept = [mixture, logits, lse]
    d_sources, d_query = torch.ops.dar.route_backward(sources, query, kept, d_mixture, d_logits, *ctx.options)
    return list(d_sources.unbind()), d_query.to(query.dtype), None, None, None


_route.register_autograd(_differentiate, setup_context=_keep)
