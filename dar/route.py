"""depth_route in plain torch: equation 5 of arXiv:2605.20708 and its gradients, without a copy or a stack of sources.

    s_i = scale r_i <q, v_i>,  r_i = (mean_d v_i^2 + eps)^(-1/2),  a = count softmax(s),  h = sum_i a_i v_i
    ds_i = a_i (<dh, v_i> + da_i - delta),  delta = sum_i a_i (<dh, v_i> + da_i) / count
    dv_i = a_i dh + ds_i r_i scale q - ds_i s_i r_i^2 / d v_i,  dq = scale sum_i ds_i r_i v_i

What autograd would keep (keys, products, a stack of all sources) is many times larger than the sources, which the
model holds anyway. Kept instead: logits and weights, (B, T) per source.

Legend: B batch, T tokens, d width, N sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dar.kernels import choose_backend
from dar.reference import query_per_token

EPS = 1e-6
"""Under the root of the keys' RMSNorm."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself in float32 or float64; a float32 copy of a narrower one."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def inverse_rms(source: Tensor, eps: float = EPS) -> Tensor:
    """1 / sqrt(mean_d v^2 + eps), shape (B, T), in float32 or better; carries no gradient."""
    norm = torch.linalg.vector_norm(at_least_float32(source.detach()), dim=-1)
    return torch.addcmul(norm.new_full((), eps), norm, norm, value=1 / source.shape[-1]).rsqrt_()


def softmax_of(logits: Tensor, count: float = 1.0) -> Tensor:
    """count softmax over the first dimension; equal logits of `count` sources give exactly 1."""
    weights = logits.softmax(dim=0)
    # Divided by the share as it is rounded, not multiplied by the count: N * fl(1 / N) is not always 1.
    return weights if count == 1 else weights / weights.new_full((), 1 / count)


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """sum_i a_i v_i in float32 or better, for v_i (B, T, d) and a_i (B, T, 1): summed in place, without gradient."""
    total = at_least_float32(tensors[0]) * weights[0]
    for v, a in zip(tensors[1:], weights[1:], strict=True):
        total.addcmul_(at_least_float32(v), a)
    return total


def mixed(tensors: Sequence[Tensor], weights: Sequence[Tensor], base: Tensor | None) -> Tensor:
    """sum_i a_i v_i as `weighted_sum`, or base + sum_i (a_i - 1) v_i.

    base: (B, T, d), what the tensors add up to, from who knows it better than their sum: weights of one give it back to
        the bit.
    """
    if base is None:
        return weighted_sum(tensors, weights)
    return weighted_sum(tensors, [a - 1 for a in weights]).add_(base)


def _finished(total: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum as what a node returns, in `dtype`."""
    # Compiled by torch 2.11, a node whose result was written to in place hands back gradients of zero
    # (pytorch issue 180642, mended in 2.12). Another name for the same memory keeps clear of that.
    return total.to(dtype).detach()


class _Mix(torch.autograd.Function):
    """h = sum_i a_i v_i;  da_i = <dh, v_i>,  dv_i = a_i dh."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, base: Tensor | None, *sources: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *sources)
        return _finished(mixed(sources, weights.unsqueeze(-1).unbind(), base), sources[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        d_mixture = at_least_float32(grads[0])
        d_weights = None
        if ctx.needs_input_grad[0]:
            d_weights = torch.stack([torch.linalg.vecdot(at_least_float32(v), d_mixture) for v in sources])
        d_sources = [
            (d_mixture * a.unsqueeze(-1)).to(v.dtype) if needed else None
            for v, a, needed in zip(sources, weights, ctx.needs_input_grad[2:], strict=True)
        ]
        return (d_weights, None, *d_sources)


def mix(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None = None) -> Tensor:
    """sum_i weights_i sources_i for weights (N, B, T) and N sources (B, T, d), in the first one's dtype.

    base: as `mixed` takes it; a constant.
    """
    if not _is_watched(weights, *sources):
        return _finished(mixed(sources, weights.unsqueeze(-1).unbind(), base), sources[0].dtype)
    return _Mix.apply(weights, base, *sources)


def _is_watched(*tensors: Tensor) -> bool:
    """Whether autograd has to be told: torch.compile loses the inputs of a node that nothing goes back through."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Route(torch.autograd.Function):
    """h (B, T, d) and a (N, B, T) for a query (1 or B, 1 or T, d), N sources and their N inverse RMS."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, scale: float, count: float, base: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        mixture, logits, weights = _routed(*_halves(tensors), query, scale, count, base)
        ctx.save_for_backward(query, logits, weights, *tensors)
        ctx.scale, ctx.count = scale, count
        return mixture, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, logits, weights, *tensors = ctx.saved_tensors
        sources, inv_rms = _halves(tensors)
        u = at_least_float32(query) * ctx.scale
        dh = at_least_float32(grads[0])
        products = torch.stack([torch.linalg.vecdot(at_least_float32(v), dh) for v in sources]).add_(grads[1])
        shares = products.mul_(weights)
        d_logits = torch.addcmul(shares, weights, shares.sum(0), value=-1 / ctx.count)
        coefficients = d_logits * torch.stack(inv_rms)
        along = coefficients * logits * torch.stack(inv_rms) / -u.shape[-1]
        d_sources: list[Tensor | None] = []
        d_query = torch.zeros_like(u)
        columns = (part.unsqueeze(-1).unbind() for part in (weights, coefficients, along))
        for v, needed, a, c, e in zip(sources, ctx.needs_input_grad[4:], *columns, strict=False):
            wide = at_least_float32(v)
            _add_weighted(d_query, c, wide)
            d_sources.append((dh * a).addcmul_(u, c).addcmul_(wide, e).to(v.dtype) if needed else None)
        return (d_query.mul_(ctx.scale).to(query.dtype), None, None, None, *d_sources, *[None] * len(inv_rms))


def _routed(
    sources: Sequence[Tensor],
    inv_rms: Sequence[Tensor],
    query: Tensor,
    scale: float,
    count: float,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mixture, logits and weights."""
    # Without values there is nothing to be narrowed, and no autocast.
    with nullcontext() if query.is_meta else torch.autocast(sources[0].device.type, enabled=False):
        u = at_least_float32(query) * scale
        scores = [_inner(at_least_float32(v), u).mul_(r) for v, r in zip(sources, inv_rms, strict=True)]
    logits = torch.stack(scores)
    weights = softmax_of(logits, count)
    return _finished(mixed(sources, weights.unsqueeze(-1).unbind(), base), sources[0].dtype), logits, weights


def _halves(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    half = len(tensors) // 2
    return list(tensors[:half]), list(tensors[half:])


def _inner(v: Tensor, u: Tensor) -> Tensor:
    """<u, v>, (B, T), for u (1 or B, 1 or T, d); a product of matrices where tokens share u."""
    if u.shape[1] > 1:
        return torch.linalg.vecdot(v, u)
    # Not len(u), which torch.export would take down as a number of samples.
    return torch.matmul(v, u.mT if u.shape[0] > 1 else u[0].mT).squeeze(-1)


def _add_weighted(total: Tensor, c: Tensor, v: Tensor) -> None:
    """total (1 or B, 1 or T, d) += c v for c (B, T, 1), summed over what shares an element of total."""
    if total.shape[1] > 1:
        total.addcmul_(c, v)
    else:
        total += torch.matmul(c.mT, v).sum_to_size(total.shape)


def route(
    sources: Sequence[Tensor],
    query: Tensor,
    inv_rms: Sequence[Tensor],
    scale: float,
    count: float = 1.0,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The mixture (B, T, d) in the first source's dtype, and the weights (N, B, T), which add up to `count`.

    Args:
        sources: N tensors (B, T, d). query: (d), (B, d) or (B, T, d). inv_rms: of each source (`inverse_rms`).
        base: as `mixed` takes it; a constant, for the gradient is that of the mixture.
    """
    query = query_per_token(query, sources[0])
    if not _is_watched(query, *sources):
        mixture, _, weights = _routed(sources, inv_rms, query, scale, count, base)
        return mixture, weights
    return _Route.apply(query, scale, count, base, *sources, *inv_rms)


@overload
def depth_route(
    sources: Sequence[Tensor],
    query: Tensor,
    gain: Tensor | None = ...,
    *,
    scale: float | None = ...,
    eps: float = ...,
    backend: str = ...,
    return_weights: Literal[False] = ...,
) -> Tensor: ...
@overload
def depth_route(
    sources: Sequence[Tensor],
    query: Tensor,
    gain: Tensor | None = ...,
    *,
    scale: float | None = ...,
    eps: float = ...,
    backend: str = ...,
    return_weights: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def depth_route(
    sources: Sequence[Tensor],
    query: Tensor,
    gain: Tensor | None = None,
    *,
    scale: float | None = None,
    eps: float = EPS,
    backend: str = "auto",
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mix earlier sublayer outputs into one input, arXiv:2605.20708 eq. 5.

        h = sum_i alpha_i v_i,   alpha_i = softmax_i(scale <q, k_i>),   k_i = RMSNorm(v_i) * gain

    Args:
        sources: N >= 1 tensors (B, T, d) of one shape.
        query: (d) static, (B, d) per sample, or (B, T, d) per token. Zero gives the plain mean.
        gain: (d), the RMSNorm's weight; None for one.
        scale: factor of the logits; None for 1 / sqrt(d).
        eps: added to the mean square under the root.
        backend: "torch"; "triton", the fused kernel; "auto", triton for sources on a GPU where it can run.
        return_weights: also return alpha, (N, B, T).

    Returns: h of shape (B, T, d) in the first source's dtype; sums run in float32 or better.
    Raises: ValueError for no sources, differing shapes, a query or gain that does not fit, or a backend
        that cannot run here.
    """
    _check(sources, gain)
    query_per_token(query, sources[0])  # raises where it does not fit
    query = query if gain is None else query * gain
    factor = sources[0].shape[-1] ** -0.5 if scale is None else scale
    if choose_backend(backend, sources) == "triton":
        from dar.kernels import op

        mixture, logits, _ = op.route(list(sources), query, factor, eps, 1.0)
        return (mixture, logits.softmax(dim=0)) if return_weights else mixture
    mixture, weights = route(sources, query, [inverse_rms(v, eps) for v in sources], factor)
    return (mixture, weights) if return_weights else mixture


def _check(sources: Sequence[Tensor], gain: Tensor | None) -> None:
    if not sources:
        raise ValueError("depth_route needs at least one source, got none")
    shape = sources[0].shape
    if len(shape) != 3:
        raise ValueError(f"sources must have shape (B, T, d), got {tuple(shape)}")
    for i, source in enumerate(sources):
        if source.shape != shape:
            raise ValueError(f"source {i} has shape {tuple(source.shape)}, source 0 has {tuple(shape)}")
    if gain is not None and gain.shape != shape[-1:]:
        raise ValueError(f"gain has shape {tuple(gain.shape)}; sources of width {shape[-1]} take ({shape[-1]},)")
