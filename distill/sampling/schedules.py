"""Timesteps: random t for training, grids of t for sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def uniform_t(num: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """t ~ U[low, high], shape (num)."""
    return low + (high - low) * torch.rand(num, generator=generator)


def logit_normal_t(num: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """t = low + (high - low) sigmoid(n), n ~ N(0, 1): puts more weight on the middle (arXiv:2403.03206)."""
    return low + (high - low) * torch.randn(num, generator=generator).sigmoid()


T_SAMPLERS: dict[str, Callable[..., Tensor]] = {"uniform": uniform_t, "logit_normal": logit_normal_t}


def shift_t(t: Tensor, shift: float) -> Tensor:
    """Shift t towards noise: s t / (1 + (s - 1) t) (arXiv:2403.03206 eq. 23); 1.0 changes nothing."""
    return shift * t / (1 + (shift - 1) * t)


def t_grid(num_steps: int, shift: float = 1.0, t_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """num_steps + 1 values from 1 (noise) to 0 (data), shifted.

    t_range: range of t in which the model is defined. All values are clamped to it except the last, at which no
        sampler evaluates the model.
    """
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least 1 step; got {num_steps}")
    grid = shift_t(torch.linspace(1, 0, num_steps + 1), shift)
    return torch.cat([grid[:-1].clamp(*t_range), grid[-1:]])
