"""Timesteps: random t for training, grids of t for sampling."""

from __future__ import annotations

import math

import torch
from scipy.special import betaincinv
from torch import Tensor

from distill.config import TConfig


def random_t(
    config: TConfig,
    num: int,
    generator: torch.Generator,
    *,
    t_range: tuple[float, float],
    step: int = 0,
    t_list: Tensor | None = None,
) -> Tensor:
    """num values of t as `config` says, on the CPU, within the range of t in which the model is defined.

    Args:
        step: number of the update, for distributions that change over the run. t_list: the student's timesteps.
    """
    if config.sampler == "student_list":
        assert t_list is not None
        return t_list.cpu()[torch.randint(len(t_list), (num,), generator=generator)]
    return quantile_t(config, torch.rand(num, generator=generator), step).clamp(*t_range)


def quantile_t(config: TConfig, u: Tensor, step: int = 0) -> Tensor:
    """The t below which a share u of those lies that `config` draws in update `step`; in the dtype of u."""
    settled = 0.5 - 0.5 * math.cos(math.pi * min(step / config.settles_over, 1)) if config.settles_over else 0.0
    if config.sampler == "logit_normal":  # arXiv:2403.03206
        u = (config.mean + config.std * torch.special.ndtri(u)).sigmoid()
    elif config.sampler == "shifted":
        u = shift_t(u, config.shift + settled * (1 - config.shift))
    elif config.sampler == "beta":
        alpha, beta = (value + settled * (1 - value) for value in (config.alpha, config.beta))
        u = torch.from_numpy(betaincinv(alpha, beta, u.double().numpy())).to(u)
    return config.low + (config.high - config.low) * u


def shift_t(t: Tensor, shift: float) -> Tensor:
    """Shift t towards noise: s t / (1 + (s - 1) t) (arXiv:2403.03206 eq. 23); 1.0 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def unshift_t(t: Tensor, shift: float) -> Tensor:
    """The inverse of `shift_t`."""
    return shift_t(t, 1 / shift)


def t_grid(num_steps: int, shift: float = 1.0, t_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """num_steps + 1 values from 1 (noise) to 0 (data), shifted.

    t_range: range of t in which the model is defined. All values are clamped to it except the last, at which no
        sampler evaluates the model.
    """
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least 1 step; got {num_steps}")
    grid = shift_t(torch.linspace(1, 0, num_steps + 1), shift)
    return torch.cat([grid[:-1].clamp(*t_range), grid[-1:]])
