"""Routers in one pass over their sources, several at once, and in two phases: equation 5 of arXiv:2605.20708.

    s_i = scale r_i <u, v_i>,  r_i = (mean_d v_i^2 + eps)^(-1/2),  a = softmax(s),  h = count sum_i a_i v_i

Queries that are known beforehand need not wait for all of their sources: what the sources so far amount to is
left as a state (largest logit m, total of exp(s - m), mixture sum of exp(s - m) v), from which a later launch
goes on. One reading of the early sources serves all readers of a block. In float32 the result has one pass's bits; in
bfloat16 the state is rounded once on the way.

Legend: N sources, P queries, B samples, T tokens, d width; a row is one token of one sample, B T rows. u is the
query times the gain; its strides are 0 where all samples or tokens share one.
"""

# A kernel is Python for Triton's compiler; a type checker has no notion of it.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dar.kernels.table import address_table, constants_of, row_pointer, same_layout, samples_and_tokens


class State(NamedTuple):
    """Mixtures (P, B, T, d) in the sources' dtype and, in float32, largest logits and totals (P, B, T).

    float16 has no range for sums of exp(s - m) v: there the mixtures are in float32, too.
    """

    mixtures: Tensor
    largest: Tensor
    totals: Tensor


@triton.jit(do_not_specialize=["num_sources", "num_queries", "num_rows", "num_tokens", "width"])
def _forward(
    table, queries, mixtures, largest, totals, logits, start_mixtures, start_largest, start_totals,
    num_sources, num_queries, num_rows, num_tokens, width, source_b, source_t, query_p, query_b, query_t,
    scale, eps, count, dim,
    DTYPE: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr, STAGES: tl.constexpr,
    P: tl.constexpr, START: tl.constexpr, FINISH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // num_tokens, row % num_tokens
    offset = sample * source_b + token * source_t
    channel = tl.arange(0, HEAD)[None, :]
    inside = channel < dim
    channel_tail = HEAD + tl.arange(0, TAIL)[None, :]
    inside_tail = channel_tail < dim
    which = tl.arange(0, P)
    asked = which < num_queries
    at_query = (which * query_p)[:, None] + sample * query_b + token * query_t
    u = tl.load(queries + at_query + channel, asked[:, None] & inside, other=0.0).to(tl.float32)
    u_tail = tl.load(queries + at_query + channel_tail, asked[:, None] & inside_tail, other=0.0).to(tl.float32)
    at_state = which.to(tl.int64) * num_rows + row
    at_mixture = at_state[:, None] * dim + channel
    at_tail = at_state[:, None] * dim + channel_tail
    if START:
        m = tl.load(start_largest + at_state, asked, other=0.0)
        total = tl.load(start_totals + at_state, asked, other=1.0)
        h = tl.load(start_mixtures + at_mixture, asked[:, None] & inside, other=0.0).to(tl.float32)
        h_tail = tl.load(start_mixtures + at_tail, asked[:, None] & inside_tail, other=0.0).to(tl.float32)
    else:
        m = tl.full([P], float("-inf"), tl.float32)
        total = tl.zeros([P], tl.float32)
        h = tl.zeros([P, HEAD], tl.float32)
        h_tail = tl.zeros([P, TAIL], tl.float32)
    # Logits of absent queries (zeros) are written too: a backward pass may read them, and no harm is done.
    at_logit = which.to(tl.int64) * num_rows + row
    for i in tl.range(num_sources, num_stages=STAGES):
        pointer = row_pointer(table, i, offset, DTYPE, ALIGNED)
        v = tl.load(pointer + channel, inside, other=0.0).to(tl.float32)
        v_tail = tl.load(pointer + channel_tail, inside_tail, other=0.0).to(tl.float32)
        r = tl.rsqrt((tl.sum(v * v, 1) + tl.sum(v_tail * v_tail, 1)) / dim + eps)
        s = (tl.sum(v * u, 1) + tl.sum(v_tail * u_tail, 1)) * r * scale
        tl.store(logits + at_logit, s, which < width)
        # Online softmax.
        new_m = tl.maximum(m, s)
        shrink = tl.exp(m - new_m)
        share = tl.exp(s - new_m)
        h = h * shrink[:, None] + share[:, None] * v
        h_tail = h_tail * shrink[:, None] + share[:, None] * v_tail
        total = total * shrink + share
        m = new_m
        at_logit += width * num_rows
    if FINISH:
        h = h * (count / total)[:, None]
        h_tail = h_tail * (count / total)[:, None]
        m += tl.log(total / count)
    else:
        tl.store(totals + at_state, total, asked)
    tl.store(largest + at_state, m, asked)
    tl.store(mixtures + at_mixture, h.to(mixtures.dtype.element_ty), asked[:, None] & inside)
    tl.store(mixtures + at_tail, h_tail.to(mixtures.dtype.element_ty), asked[:, None] & inside_tail)


def _launch(
    sources: Sequence[Tensor],
    queries: Tensor,
    start: State | None,
    end: State,
    logits: Tensor,
    scale: float,
    eps: float,
    count: float,
    finish: bool,
) -> None:
    num_sources = len(sources)
    sources = same_layout(sources) or list(end.mixtures)  # never looked at where there are none
    batch, tokens, dim = sources[0].shape
    num_queries = end.mixtures.shape[0]
    before = start or end  # not looked at where there is none
    _forward[(batch * tokens,)](
        address_table(sources), queries, *end, logits, *before,
        num_sources, num_queries, batch * tokens, tokens, logits.shape[1], *sources[0].stride()[:2],
        queries.stride(0), *samples_and_tokens(queries[0]), scale, eps, count, dim,
        P=triton.next_power_of_2(num_queries), START=start is not None, FINISH=finish,
        **constants_of(sources, 2 * triton.next_power_of_2(num_queries) + 1),
    )  # fmt: skip


def begin(sources: Sequence[Tensor], queries: Tensor, logits: Tensor, scale: float, eps: float) -> State:
    """What the first sources amount to for P queries.

    Args:
        sources: N >= 1 tensors (B, T, d) of one dtype. queries: (P, d), (P, B, d) or (P, B, T, d).
        logits: (N, W, B, T) float32 with W >= P, written.
    """
    shape = sources[0].shape
    wide = torch.float32 if sources[0].dtype == torch.float16 else sources[0].dtype
    mixtures = sources[0].new_empty(len(queries), *shape, dtype=wide)
    largest = torch.empty(len(queries), *shape[:2], dtype=torch.float32, device=mixtures.device)
    state = State(mixtures, largest, torch.empty_like(largest))
    _launch(sources, queries, None, state, logits, scale, eps, 1.0, finish=False)
    return state


def finish(
    sources: Sequence[Tensor],
    query: Tensor,
    logits: Tensor,
    scale: float,
    eps: float,
    count: float = 1.0,
    start: State | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """h (B, T, d) in the sources' dtype, and lse (B, T), the logarithm of sum exp(s) / count.

    Args:
        sources: N tensors (B, T, d); at least one, unless there is a start. query: (d), (B, d) or (B, T, d).
        logits: (N, W, B, T) float32, of which the first of W is written. count: factor of h.
        start: of the sources before these, its tensors without the dimension P; None where these are all.
        dtype: the sources', where none may be given.
    """
    like = sources[0] if sources else start.mixtures  # pyright: ignore[reportOptionalMemberAccess]
    shape = like.shape
    mixture = like.new_empty(shape, dtype=dtype or like.dtype)
    lse = torch.empty(shape[:2], dtype=torch.float32, device=mixture.device)
    end = State(mixture[None], lse[None], lse[None])  # its totals are not written
    _launch(sources, query[None], start, end, logits, scale, eps, count, finish=True)
    return mixture, lse
