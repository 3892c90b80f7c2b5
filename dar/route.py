"""depth_route in two steps, neither of which copies or stacks a source.

`source_logits` scores one source against every query that will ever read it, in one small matrix product;
`mix` adds sources up with given weights. Both have hand-written backward passes, because what autograd
would keep (keys, products, a stack of all sources) is many times larger than the sources, which the
model holds anyway. Kept instead: logits and weights, (B, T) per source and reader; inverse RMS per source.

Legend: B batch, T tokens, d width, N sources, P queries that read one source.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class _SourceLogits(torch.autograd.Function):
    """s_p = scale r <u_p, v>, r = inverse RMS of v.

    With c_p = ds_p scale r:  dv = sum_p c_p u_p - (sum_p ds_p s_p) r^2 / d v,  du_p = c_p v.
    """

    @staticmethod
    def forward(ctx: Any, source: Tensor, queries: Tensor, inv_rms: Tensor, scale: float) -> Tensor:
        with torch.autocast(source.device.type, enabled=False):
            v, u = at_least_float32(source), at_least_float32(queries)
            factor = (inv_rms * scale).unsqueeze(1)  # (B, 1, T)
            if u.dim() == 4:  # one query per token
                logits = (v.unsqueeze(1) * u).sum(-1) * factor
            else:
                logits = torch.matmul(u, v.transpose(1, 2)) * factor  # (P, d) or (B, P, d)
        ctx.save_for_backward(source, queries, logits, inv_rms)
        ctx.scale = scale
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        source, queries, logits, inv_rms = ctx.saved_tensors
        v, u = at_least_float32(source), at_least_float32(queries)
        d_logits = grads[0]
        c = d_logits * (inv_rms * ctx.scale).unsqueeze(1)  # (B, P, T)
        along_source = (d_logits * logits).sum(1).mul_(inv_rms.square()).div_(-v.shape[-1])
        if u.dim() == 4:
            d_source = (c.unsqueeze(-1) * u).sum(1)
            d_queries = c.unsqueeze(-1) * v.unsqueeze(1)
        else:
            d_source = torch.matmul(c.transpose(1, 2), u)
            d_queries = torch.bmm(c, v) if u.dim() == 3 else torch.einsum("bpt,btd->pd", c, v)
        d_source.addcmul_(v, along_source.unsqueeze(-1))
        return d_source.to(source.dtype), d_queries.to(queries.dtype), None, None


def source_logits(source: Tensor, queries: Tensor, inv_rms: Tensor, scale: float | None = None) -> Tensor:
    """Logits of one source for P queries: scale <q_p, RMSNorm(v)>.

    Args:
        source: v, (B, T, d).
        queries: (P, d), (B, P, d) or, one per token, (B, P, T, d); a gain is multiplied in beforehand.
        inv_rms: `inverse_rms(source)`.
        scale: None for 1 / sqrt(d).

    Returns: (B, P, T) in float32 or better.
    """
    scale = source.shape[-1] ** -0.5 if scale is None else scale
    return _SourceLogits.apply(source, queries, inv_rms, scale)


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


class _Mix(torch.autograd.Function):
    """h = sum_i a_i v_i;  da_i = <dh, v_i>,  dv_i = a_i dh."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, *sources: Tensor) -> Tensor:
        ctx.save_for_backward(weights, *sources)
        return weighted_sum(sources, weights.unsqueeze(-1).unbind()).to(sources[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *sources = ctx.saved_tensors
        d_mixture = at_least_float32(grads[0])
        d_weights = torch.stack([torch.linalg.vecdot(at_least_float32(v), d_mixture) for v in sources])
        d_sources = [
            (d_mixture * a.unsqueeze(-1)).to(v.dtype) if needed else None
            for v, a, needed in zip(sources, weights, ctx.needs_input_grad[1:], strict=True)
        ]
        return (d_weights, *d_sources)


def mix(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_i weights_i sources_i for weights (N, B, T) and N sources (B, T, d), in the sources' dtype."""
    return _Mix.apply(weights, *sources)


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

    Returns: h of shape (B, T, d) in the sources' dtype; sums run in float32 or better.
    Raises: ValueError for no sources, differing shapes, a query or gain that does not fit, or a backend
        that cannot run here.
    """
    _check(sources, gain)
    per_token = query_per_token(query, sources[0])  # (1 or B, 1 or T, d); raises where it does not fit
    if choose_backend(backend, sources) == "triton":
        from dar.kernels.op import route

        query = query if gain is None else query * gain
        scale = sources[0].shape[-1] ** -0.5 if scale is None else scale
        mixture, logits, _ = route(list(sources), query, scale, eps, 1.0)
        return (mixture, logits.softmax(dim=0)) if return_weights else mixture
    if gain is not None:
        per_token = per_token * gain
    queries = {1: per_token[0], 2: per_token, 3: per_token.unsqueeze(1)}[query.dim()]
    logits = [source_logits(v, queries, inverse_rms(v, eps), scale).squeeze(1) for v in sources]
    weights = torch.stack(logits).softmax(dim=0)
    mixture = mix(sources, weights)
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
