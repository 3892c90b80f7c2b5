"""The gradient of a source, gathered from all of its readers at once; of several sources that share readers, too.

    a_l = exp(s_l - lse_l),  ds_l = a_l (<dh_l, v> - delta_l),  delta_l = <dh_l, h_l> / count_l
    dv = sum_l (a_l dh_l + ds_l r scale u_l) - (sum_l ds_l s_l) r^2 / d v

over the readers l of v, where lse_l contains -log(count_l). Everything that this takes is known once the backward
pass has reached v; a launch sums in registers and writes once: no order of arrival, the same bits at every run. Readers
that read v early and those that read it late are two launches.

Legend as in `dar.kernels.forward`; W slots of a block, K targets (sources whose gradient is wanted).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dar.kernels.table import address_table, constants_of, row_pointer


@triton.jit(do_not_specialize=["num_targets", "num_slots", "first", "position", "num_rows", "num_tokens"])
def _pull(
    targets, d_mixtures, logits, queries, lse, delta, start, d_targets, coefficients,
    num_targets, num_slots, first, position, num_rows, num_tokens, query_slot, query_b, scale, eps, dim,
    DTYPE: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, ALIGNED: tl.constexpr, STAGES: tl.constexpr,
    K: tl.constexpr, WIDTH: tl.constexpr, PER_CALL: tl.constexpr, START: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample = row // num_tokens
    offset = row * dim
    channel = tl.arange(0, HEAD)[None, :]
    inside = channel < dim
    channel_tail = HEAD + tl.arange(0, TAIL)[None, :]
    inside_tail = channel_tail < dim
    which = tl.arange(0, K)
    wanted = which < num_targets
    v = tl.zeros([K, HEAD], tl.float32)
    v_tail = tl.zeros([K, TAIL], tl.float32)
    for k in tl.static_range(K):
        if k < num_targets:
            pointer = row_pointer(targets, k, offset, DTYPE, ALIGNED)
            one = tl.load(pointer + channel, inside, other=0.0).to(tl.float32)
            v = tl.where((which == k)[:, None], one, v)
            one = tl.load(pointer + channel_tail, inside_tail, other=0.0).to(tl.float32)
            v_tail = tl.where((which == k)[:, None], one, v_tail)
    r = tl.rsqrt((tl.sum(v * v, 1) + tl.sum(v_tail * v_tail, 1)) / dim + eps)
    at_target = (which.to(tl.int64) * num_rows + row)[:, None] * dim
    if START:
        dv = tl.load(start + at_target + channel, wanted[:, None] & inside, other=0.0).to(tl.float32)
        dv_tail = tl.load(start + at_target + channel_tail, wanted[:, None] & inside_tail, other=0.0).to(tl.float32)
    else:
        dv = tl.zeros([K, HEAD], tl.float32)
        dv_tail = tl.zeros([K, TAIL], tl.float32)
    along = tl.zeros([K], tl.float32)
    for slot in tl.range(num_slots, num_stages=STAGES):
        pointer = row_pointer(d_mixtures, slot, offset, DTYPE, ALIGNED)
        dh = tl.load(pointer + channel, inside, other=0.0).to(tl.float32)
        dh_tail = tl.load(pointer + channel_tail, inside_tail, other=0.0).to(tl.float32)
        at_query = queries + (first + slot) * query_slot + sample * query_b
        u = tl.load(at_query + channel, inside, other=0.0).to(tl.float32)
        u_tail = tl.load(at_query + channel_tail, inside_tail, other=0.0).to(tl.float32)
        at_reader = (first + slot).to(tl.int64) * num_rows + row
        # A launch of the forward pass left the logits of its sources: (N, WIDTH) rows, one for each of PER_CALL slots.
        call = tl.load(logits + slot // PER_CALL).to(tl.pointer_type(tl.float32))
        at_logit = ((position + which) * WIDTH + slot % PER_CALL).to(tl.int64) * num_rows + row
        s = tl.load(call + at_logit, wanted, other=0.0)
        a = tl.exp(s - tl.load(lse + at_reader))
        ds = a * (tl.sum(v * dh, 1) + tl.sum(v_tail * dh_tail, 1) - tl.load(delta + at_reader))
        c = ds * r * scale
        dv += a[:, None] * dh + c[:, None] * u
        dv_tail += a[:, None] * dh_tail + c[:, None] * u_tail
        along += ds * s
        at_coefficient = (which * num_slots + slot).to(tl.int64) * num_rows + row
        tl.store(coefficients + at_coefficient, c, wanted)
    dv -= (along * r * r / dim)[:, None] * v
    dv_tail -= (along * r * r / dim)[:, None] * v_tail
    tl.store(d_targets + at_target + channel, dv.to(DTYPE), wanted[:, None] & inside)
    tl.store(d_targets + at_target + channel_tail, dv_tail.to(DTYPE), wanted[:, None] & inside_tail)


@triton.jit
def _delta(d_mixture, mixture, delta, count, dim, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < dim
    dh = tl.load(d_mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
    h = tl.load(mixture + row * dim + channel, inside, other=0.0).to(tl.float32)
    tl.store(delta + row, tl.sum(dh * h) / count)


def write_delta(d_mixture: Tensor, mixture: Tensor, count: float, delta: Tensor) -> None:
    """<dh, h> / count of contiguous (B, T, d) into `delta` (B, T), float32."""
    batch, tokens, dim = mixture.shape
    block = triton.next_power_of_2(dim)
    _delta[(batch * tokens,)](d_mixture, mixture, delta, count, dim, BLOCK=block, num_warps=4)


def pull(
    targets: Sequence[Tensor],
    d_mixtures: Sequence[Tensor],
    logits: Sequence[Tensor],
    queries: Tensor,
    lse: Tensor,
    delta: Tensor,
    *,
    first: int,
    position: int,
    per_call: int,
    scale: float,
    eps: float,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What readers at slots first, first + 1, .. contribute to the gradients of K sources.

    Args:
        targets: K contiguous (B, T, d), side by side in their calls, the first at `position`.
        d_mixtures: dh of each slot, contiguous (B, T, d).
        logits: of the calls that hold these slots, `per_call` slots each: (N, W, B, T) float32.
        queries: (slots, d) or (slots, B, d), best in the sources' dtype: each is read once for every token.
        lse, delta: (slots, B, T) float32.
        start: (K, B, T, d), added; None for nothing.

    Returns: gradients (K, B, T, d) in the sources' dtype, and c = ds r scale, (K, slots, B, T) in float32,
        of which du = sum c v.
    """
    batch, tokens, dim = targets[0].shape
    d_targets = targets[0].new_empty(len(targets), batch, tokens, dim)
    coefficients = lse.new_empty(len(targets), len(d_mixtures), batch, tokens)
    held = triton.next_power_of_2(len(targets))
    of_sample = queries.stride(1) if queries.dim() == 3 else 0
    _pull[(batch * tokens,)](
        address_table(targets), address_table(d_mixtures), address_table(logits), queries, lse, delta,
        d_targets if start is None else start, d_targets, coefficients,
        len(targets), len(d_mixtures), first, position, batch * tokens, tokens, queries.stride(0), of_sample,
        scale, eps, dim, K=held, WIDTH=logits[0].shape[1], PER_CALL=per_call, START=start is not None,
        **constants_of([*targets, *d_mixtures], 2 * held + 2),
    )  # fmt: skip
    return d_targets, coefficients
