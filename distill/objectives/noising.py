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
    t = random_t(config, num_rows, generator, t_range=setting.t_range, step=step, t_list=setting.t_list)
    return _share(setting, t), noise_rows(setting, num_rows, generator)


def noise_rows(setting: Setting, num_rows: int, generator: torch.Generator) -> Tensor:
    """Standard normal values in the shape of samples, as `t_and_eps`."""
    return _share(setting, torch.randn(num_rows, *setting.sample_shape, generator=generator))


def _share(setting: Setting, rows: Tensor) -> Tensor:
    """This process's rows: of each step of the list those of its trajectories."""
    by_trajectory = rows.unflatten(0, (-1, setting.config.train.batch_size))
    return rank_slice(by_trajectory, setting.accelerator, dim=1).flatten(0, 1)
