"""Batches of conditions: a tensor, or several tensors by name, with one row per sample.

Class labels are one tensor (B). Text is several: embeddings (B, L, D), a mask (B, L), a pooled vector (B, D).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ConditionBatch = Any
"""A tensor, or a dictionary of tensors; what is in it is between a condition and its models."""


def map_tensors(function: Callable[[Tensor], Tensor], y: ConditionBatch) -> ConditionBatch:
    """Apply `function` to each tensor of a batch."""
    return {name: function(tensor) for name, tensor in y.items()} if isinstance(y, dict) else function(y)


def num_rows(y: ConditionBatch) -> int:
    """B."""
    return len(next(iter(y.values())) if isinstance(y, dict) else y)


def to_device(y: ConditionBatch, device: torch.device | str) -> ConditionBatch:
    """The batch on `device`. The host does not wait until a GPU has it, nor for what the GPU does before."""
    to_gpu = torch.device(device).type == "cuda"

    def moved(tensor: Tensor) -> Tensor:
        # Only from pinned memory can a copy run by itself.
        source = tensor.pin_memory() if to_gpu and not tensor.is_cuda else tensor
        return source.to(device, non_blocking=to_gpu)

    return map_tensors(moved, y)


def slice_rows(y: ConditionBatch, start: int, stop: int) -> ConditionBatch:
    """Rows start, .., stop - 1."""
    return map_tensors(lambda tensor: tensor[start:stop], y)


def take_rows(y: ConditionBatch, indices: Tensor) -> ConditionBatch:
    """The rows of `indices`, in that order."""
    return map_tensors(lambda tensor: tensor[indices], y)


def repeat_rows(y: ConditionBatch, times: int) -> ConditionBatch:
    """The whole batch `times` times, one after the other."""
    return map_tensors(lambda tensor: tensor.repeat(times, *[1] * (tensor.dim() - 1)), y)


def chunk_rows(y: ConditionBatch, chunks: int) -> list[ConditionBatch]:
    """The batch in `chunks` parts, as `torch.chunk` cuts it."""
    num = num_rows(y)
    size = -(-num // chunks)
    return [slice_rows(y, first, min(first + size, num)) for first in range(0, num, size)]


def concat_rows(first: ConditionBatch, second: ConditionBatch) -> ConditionBatch:
    """The rows of `first`, then those of `second`; both have the same tensors."""
    if isinstance(first, dict):
        return {name: torch.cat([tensor, second[name]]) for name, tensor in first.items()}
    return torch.cat([first, second])


def where_rows(mask: Tensor, chosen: ConditionBatch, other: ConditionBatch) -> ConditionBatch:
    """Per row, `chosen` where mask (B) is true and `other` elsewhere."""
    if isinstance(chosen, dict):
        return {name: _where(mask, tensor, other[name]) for name, tensor in chosen.items()}
    return _where(mask, chosen, other)


def _where(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (chosen.dim() - 1)), chosen, other)
