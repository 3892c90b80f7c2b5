"""Equation 5 in plain torch: what every faster implementation is held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def query_per_token(query: Tensor, source: Tensor) -> Tensor:
    """View a query of shape (d), (B, d) or (B, T, d) so that it broadcasts against a source (B, T, d).

    Raises: ValueError naming both shapes where they do not fit.
    """
    batch, tokens, dim = source.shape
    # Ranks first: compared with a width, a number of samples that may be any would be fixed by torch.export.
    if query.dim() == 1 and query.shape == (dim,):
        return query.view(1, 1, dim)
    if query.dim() == 2 and query.shape == (batch, dim):
        return query.view(batch, 1, dim)
    if query.dim() == 3 and query.shape == (batch, tokens, dim):
        return query
    raise ValueError(
        f"query has shape {tuple(query.shape)}; sources of shape {tuple(source.shape)} take "
        f"({dim},), ({batch}, {dim}) or ({batch}, {tokens}, {dim})"
    )


def depth_route_reference(
    sources: Sequence[Tensor],
    query: Tensor,
    gain: Tensor | None = None,
    *,
    scale: float | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Softmax mixture over depth, arXiv:2605.20708 eq. 5, written as the equation reads.

        h = sum_i alpha_i v_i,   alpha_i = softmax_i(scale <q, k_i>),   k_i = RMSNorm(v_i) * gain

    It stacks the sources and lets autograd keep every intermediate: right, not fast.

    Returns: the mixture (B, T, d) and the weights (N, B, T).
    """
    stacked = torch.stack(list(sources))
    keys = stacked * torch.rsqrt(stacked.square().mean(-1, keepdim=True) + eps)
    if gain is not None:
        keys = keys * gain
    factor = stacked.shape[-1] ** -0.5 if scale is None else scale
    weights = ((keys * query_per_token(query, sources[0])).sum(-1) * factor).softmax(dim=0)
    return (weights.unsqueeze(-1) * stacked).sum(0), weights
