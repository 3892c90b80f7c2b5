"""Splitting a global batch over processes."""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor


def rank_slice(batch: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's share of a batch that every process drew alike, on its device."""
    share = len(batch) // accelerator.num_processes
    first = accelerator.process_index * share
    return batch[first : first + share].to(accelerator.device)
