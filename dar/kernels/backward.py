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

TOKENS_PER_PARTIAL = 8  # tokens whose shares of du are added up in one program


@triton.jit(do_not_specialize=["num_sources", "num_rows", "num_tokens"])
def _backward(
    table, query, mixture, logits, lse, d_mixture, d_logits, d_sources, d_query,
    num_sources, num_rows, num_tokens, source_b, source_t, query_b, query_t,
    scale, eps, count, dim,
    DTYPE: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr, STAGES: tl.constexpr,
    TOKENS: tl.constexpr, HAS_D_LOGITS: tl.constexpr,
):  # fmt: skip
    # Parts come first: the second axis of a grid ends at 65535.
    part = tl.program_id(0)
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, HEAD)
    inside = channel < dim
    channel_tail = HEAD + tl.arange(0, TAIL)
    inside_tail = channel_tail < dim
    du = tl.zeros([HEAD], tl.float32)
    du_tail = tl.zeros([TAIL], tl.float32)
    for token in range(part * TOKENS, tl.minimum((part + 1) * TOKENS, num_tokens)):
        row = sample * num_tokens + token  # 64 bit, as the sample is
        wide_token = row - sample * num_tokens
        offset = sample * source_b + wide_token * source_t
        at_query = query + sample * query_b + wide_token * query_t
        u = tl.load(at_query + channel, inside, other=0.0).to(tl.float32)
        u_tail = tl.load(at_query + channel_tail, inside_tail, other=0.0).to(tl.float32)
        dh = tl.load(d_mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
        dh_tail = tl.load(d_mixture + row * dim + channel_tail, inside_tail, other=0.0).to(tl.float32)
        h = tl.load(mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
        h_tail = tl.load(mixture + row * dim + channel_tail, inside_tail, other=0.0).to(tl.float32)
        delta = (tl.sum(dh * h) + tl.sum(dh_tail * h_tail)) / count
        total = tl.load(lse + row)
        at = row
        for i in tl.range(num_sources, num_stages=STAGES):
            s = tl.load(logits + at)
            pointer = row_pointer(table, i, offset, DTYPE, ALIGNED)
            v = tl.load(pointer + channel, inside, other=0.0).to(tl.float32)
            v_tail = tl.load(pointer + channel_tail, inside_tail, other=0.0).to(tl.float32)
            r = tl.rsqrt((tl.sum(v * v) + tl.sum(v_tail * v_tail)) / dim + eps)
            a = tl.exp(s - total)
            ds = a * (tl.sum(dh * v) + tl.sum(dh_tail * v_tail) - delta)
            if HAS_D_LOGITS:
                ds += tl.load(d_logits + at)
            c, along = ds * r * scale, ds * s * r * r / dim
            dv = a * dh + c * u - along * v
            dv_tail = a * dh_tail + c * u_tail - along * v_tail
            tl.store(d_sources + at * dim + channel, dv.to(DTYPE), inside)
            tl.store(d_sources + at * dim + channel_tail, dv_tail.to(DTYPE), inside_tail)
            du += c * v
            du_tail += c * v_tail
            at += num_rows
    num_parts = tl.num_programs(0)
    at_part = d_query + (sample * num_parts + part) * dim
    tl.store(at_part + channel, du, inside)
    tl.store(at_part + channel_tail, du_tail, inside_tail)


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
        TOKENS=tokens_per_part, HAS_D_LOGITS=d_logits is not None, **constants_of(sources, 5),
    )  # fmt: skip
    shared_by = {1: (0, 1), 2: (1,), 3: None}[query.dim()]
    return d_sources, d_query if shared_by is None else d_query.sum(shared_by)
