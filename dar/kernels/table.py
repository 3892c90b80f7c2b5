"""Lists of tensors as tables of addresses, so that one compiled kernel takes any number of them, and shared facts."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PER_LAUNCH = 16
MOST_VALUES = 216  # of rows in one thread: with more of them registers spill
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit(do_not_specialize=["first", "end"])
def _fill(table, first, end, tensors):
    for i in tl.static_range(len(tensors)):
        if first + i < end:
            tl.store(table + first + i, tensors[i].to(tl.int64))


def address_table(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors' addresses, (N) int64, on their device.

    Written there by a kernel: nothing is copied from the host and nothing waited for, so it may be captured
    in a CUDA graph. A fixed number of addresses a launch is one binary for every N.
    """
    table = torch.empty(len(tensors), dtype=torch.int64, device=tensors[0].device)
    for first in range(0, len(tensors), PER_LAUNCH):
        group = list(tensors[first : first + PER_LAUNCH])
        group += group[-1:] * (PER_LAUNCH - len(group))
        _fill[(1,)](table, first, len(tensors), tuple(group))
    return table


@triton.jit
def row_pointer(table, i, offset, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A pointer to the row at `offset` elements of tensor i of the table."""
    pointer = tl.load(table + i).to(tl.pointer_type(DTYPE)) + offset
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


def same_layout(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors (B, T, d) themselves where one pair of strides serves all, else contiguous copies of the odd ones.

    A kernel takes the strides of the first for all; channels must lie side by side.
    """
    if not tensors:
        return []
    strides = tensors[0].stride()
    if strides[-1] == 1 and all(tensor.stride() == strides for tensor in tensors):
        return list(tensors)
    return [tensor.contiguous() for tensor in tensors]


def is_aligned(tensors: Sequence[Tensor]) -> bool:
    """Whether every row (d) of every tensor begins at a multiple of 16 bytes: then loads are as wide as can be."""
    strides = tensors[0].stride()[:-1]
    size = tensors[0].element_size()
    return all(stride * size % 16 == 0 for stride in strides) and all(t.data_ptr() % 16 == 0 for t in tensors)


def constants_of(sources: Sequence[Tensor], rows_held: int) -> dict[str, Any]:
    """What a kernel is compiled for; `rows_held` rows (d) are in its registers at once."""
    head, tail = row_parts(sources[0].shape[-1])
    return {
        "DTYPE": TYPES[sources[0].dtype],
        "HEAD": head,
        "TAIL": tail,
        "ALIGNED": is_aligned(sources),
        "STAGES": num_stages(sources[0].element_size()),
        "num_warps": num_warps(rows_held, head + tail),
    }


def row_parts(dim: int) -> tuple[int, int]:
    """A row of d as two parts whose lengths are powers of two, as Triton has them: 1152 is 1024 and 128, not 2048."""
    whole = triton.next_power_of_2(dim)
    tail = triton.next_power_of_2(max(dim - whole // 2, 1))
    return (whole // 2, tail) if whole >= 2 else (1, 1)


def num_warps(rows_held: int, width: int) -> int:
    """As few as hold the rows: one warp has nobody to wait for when it adds up a row."""
    return triton.next_power_of_2(-(-rows_held * width // (32 * MOST_VALUES)))


def num_stages(element_size: int) -> int:
    """Rows of sources in flight while one is worked on, and that one; a loop is pipelined only if it is told so."""
    return 3 if element_size == 2 else 2


def samples_and_tokens(query: Tensor) -> tuple[int, int]:
    """Strides of a query (d), (B, d) or (B, T, d) over samples and over tokens; 0 for what it does not tell apart."""
    over_samples, over_tokens = (*query.stride()[:-1], 0, 0)[:2]
    return over_samples, over_tokens
