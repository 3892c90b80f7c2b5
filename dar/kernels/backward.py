"""The gradients of one router in one pass over its sources: functional, for autograd and torch.compile.

    a_i = exp(s_i - lse),  ds_i = a_i (<dh, v_i> - delta) + dlogits_i,  delta = <dh, h> / count
    dv_i = a_i dh + ds_i r_i scale u - (ds_i s_i r_i^2 / d) v_i,   du = sum_i ds_i r_i scale v_i

Legend as in `dar.kernels.forward`.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dar.kernels.table import address_table, constants_of, row_pointer, same_layout, samples_and_tokens

TOKENS_PER_PARTIAL = 32  # tokens whose shares of du are added up in one program


@triton.jit(do_not_specialize=["num_sources", "num_rows", "num_tokens"])
def _backward(
    table, query, mixture, logits, lse, d_mixture, d_logits, d_sources, d_query,
    num_sources, num_rows, num_tokens, source_b, source_t, query_b, query_t,
    scale, eps, count, dim,
    DTYPE: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, STAGES: tl.constexpr,
    TOKENS: tl.constexpr, HAS_D_LOGITS: tl.constexpr,
):  # fmt: skip
    # Parts come first: the second axis of a grid ends at 65535.
    part = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < dim
    du = tl.zeros([BLOCK], tl.float32)
    for token in range(part * TOKENS, tl.minimum((part + 1) * TOKENS, num_tokens)):
        row = sample * num_tokens + token  # 64 bit, as the sample is
        wide_token = row - sample * num_tokens
        offset = sample * source_b + wide_token * source_t
        u = tl.load(query + sample * query_b + wide_token * query_t + channel, inside, other=0.0).to(tl.float32)
        dh = tl.load(d_mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
        h = tl.load(mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
        delta = tl.sum(dh * h) / count
        total = tl.load(lse + row)
        at = row
        for i in tl.range(num_sources, num_stages=STAGES):
            s = tl.load(logits + at)
            v = tl.load(row_pointer(table, i, offset, DTYPE, ALIGNED) + channel, inside, other=0.0).to(tl.float32)
            r = tl.rsqrt(tl.sum(v * v) / dim + eps)
            a = tl.exp(s - total)
            ds = a * (tl.sum(dh * v) - delta)
            if HAS_D_LOGITS:
                ds += tl.load(d_logits + at)
            dv = a * dh + (ds * r * scale) * u - (ds * s * r * r / dim) * v
            tl.store(d_sources + at * dim + channel, dv.to(DTYPE), inside)
            du += (ds * r * scale) * v
            at += num_rows
    num_parts = tl.num_programs(0)
    tl.store(d_query + (sample * num_parts + part) * dim + channel, du, inside)


def route_backward(
    sources: Sequence[Tensor],
    query: Tensor,
    kept: tuple[Tensor, Tensor, Tensor],
    d_mixture: Tensor,
    d_logits: Tensor | None,
    scale: float,
    eps: float,
    count: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the sources, (N, B, T, d) in their dtype, and of the query, float32 in its shape.

    Args:
        sources, query: as `forward.finish` took them. kept: h (B, T, d), logits (N, B, T), lse (B, T).
        d_mixture, d_logits: gradients of h and of the logits; None for no gradient of the logits.
    """
    sources = same_layout(sources)
    mixture, logits, lse = kept
    batch, tokens, dim = mixture.shape
    # A query per token has its gradient row by row; a shared one gathers whole parts of the tokens first.
    tokens_per_part = 1 if query.dim() == 3 else TOKENS_PER_PARTIAL
    parts = -(-tokens // tokens_per_part)
    d_sources = mixture.new_empty(len(sources), batch, tokens, dim)
    d_query = torch.empty(batch, parts, dim, dtype=torch.float32, device=mixture.device)
    _backward[(parts, batch)](
        address_table(sources), query, mixture, logits, lse,
        d_mixture.contiguous(), logits if d_logits is None else d_logits.contiguous(), d_sources, d_query,
        len(sources), batch * tokens, tokens, *sources[0].stride()[:2], *samples_and_tokens(query),
        scale, eps, count, dim,
        TOKENS=tokens_per_part, HAS_D_LOGITS=d_logits is not None, **constants_of(sources, 1),
    )  # fmt: skip
    shared_by = {1: (0, 1), 2: (1,), 3: None}[query.dim()]
    return d_sources, d_query if shared_by is None else d_query.sum(shared_by)
