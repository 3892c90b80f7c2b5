"""Random timesteps and noise for the student's samples."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.config import TConfig
from distill.objectives.base import Setting
from distill.sampling import random_t
from distill.training.batches import rank_slice


def t_and_eps(
    setting: Setting, config: TConfig, step: int, num_rows: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """t and eps to noise `num_rows` samples, over all processes, of update number `step`; this process's rows.

    num_rows: a multiple of train.batch_size. All random numbers are drawn alike on every process, which keeps its share
        of the trajectories.
    """
    size = setting.config.train.batch_size
    per_trajectory = num_rows // size
    t = random_t(config, num_rows, generator, t_range=setting.t_range, step=step, t_list=setting.t_list)
    eps = torch.randn(per_trajectory, size, *setting.sample_shape, generator=generator)
    t, eps = (rank_slice(x, setting.accelerator, dim=1).flatten(0, 1) for x in (t.view(per_trajectory, size), eps))
    return t, eps
