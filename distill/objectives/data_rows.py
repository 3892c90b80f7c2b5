"""Rows of the data set for a student's update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, to_device
from distill.data import Dataset
from distill.data.base import shuffled_indices
from distill.objectives.base import Setting
from distill.training.batches import local_rows, rank_noise


def data_rows(
    setting: Setting, number: int, num_rows: int, generator: torch.Generator, data: Dataset | None = None
) -> tuple[Tensor, Any]:
    """Batch `number` of `num_rows` samples, over all processes, and their conditions; this process's rows.

    data: in place of the run's own.
    """
    data = setting.data if data is None else data
    assert data is not None
    indices = shuffled_indices(len(data), num_rows, number, setting.config.train.seed)
    x0, y = data.batch(local_rows(indices, setting.accelerator), rank_noise(generator, setting.accelerator))
    device = setting.accelerator.device
    moved: ConditionBatch = to_device(y, device)
    return to_device(x0, device), moved
