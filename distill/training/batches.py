"""Splitting a global batch over processes, of which each sees what one alone would see."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.conditions import ConditionBatch, map_tensors
from distill.data.base import Noise, noise_of


def rank_slice(batch: ConditionBatch, accelerator: Accelerator, dim: int = 0) -> Any:
    """This process's share, along `dim`, of a tensor or of conditions that every process drew alike; on its device."""
    return map_tensors(lambda part: local_rows(part, accelerator, dim).to(accelerator.device), batch)


def local_rows(batch: Tensor, accelerator: Accelerator, dim: int = 0) -> Tensor:
    """`rank_slice` where the batch is."""
    share = batch.shape[dim] // accelerator.num_processes
    return batch.narrow(dim, accelerator.process_index * share, share)


def rank_noise(generator: torch.Generator, accelerator: Accelerator) -> Noise:
    """This process's rows of the whole batch's noise, which every process draws alike."""

    def noise(shape: torch.Size) -> Tensor:
        whole = torch.Size([shape[0] * accelerator.num_processes, *shape[1:]])
        return local_rows(noise_of(generator)(whole), accelerator)

    return noise
