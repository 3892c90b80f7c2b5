"""Splitting a global batch over processes."""

from __future__ import annotations

from accelerate import Accelerator
from torch import Tensor


def rank_slice(batch: Tensor, accelerator: Accelerator, dim: int = 0) -> Tensor:
    """This process's share, along `dim`, of a batch that every process drew alike; on its device."""
    share = batch.shape[dim] // accelerator.num_processes
    return batch.narrow(dim, accelerator.process_index * share, share).to(accelerator.device)
