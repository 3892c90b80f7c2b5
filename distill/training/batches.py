"""Splitting a global batch over processes, so that each row is the same as with a single process."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.conditions import ConditionBatch, map_tensors, to_device
from distill.data.base import Noise, noise_of


def rank_slice(batch: ConditionBatch, accelerator: Accelerator, dim: int = 0) -> Any:
    """This process's rows, along `dim`, of a tensor or of conditions, moved to its device.

    Every process must pass the same global batch.
    """
    return to_device(map_tensors(lambda part: local_rows(part, accelerator, dim), batch), accelerator.device)


def local_rows(batch: Tensor, accelerator: Accelerator, dim: int = 0) -> Tensor:
    """As `rank_slice`, for one tensor and without a move to another device."""
    share = batch.shape[dim] // accelerator.num_processes
    return batch.narrow(dim, accelerator.process_index * share, share)


def rank_noise(generator: torch.Generator, accelerator: Accelerator) -> Noise:
    """This process's rows of the noise of the global batch. Every process draws the same global noise."""

    def noise(shape: torch.Size) -> Tensor:
        whole = torch.Size([shape[0] * accelerator.num_processes, *shape[1:]])
        return local_rows(noise_of(generator)(whole), accelerator)

    return noise
