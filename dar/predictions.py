"""What a network was trained to predict, and the velocity that it means. One convention is spoken outside:
x_t = (1 - t) x0 + t eps, velocity = eps - x0.

A network of another convention keeps its weights. It is told its own time, fed its own x, and its output is
turned into the velocity; so a model's function is that of its public weights, and a folder says which it is.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

DDPM_STEPS = 1000
DDPM_BETAS = (1e-4, 0.02)
_A_SQUARED = np.cumprod(1 - np.linspace(*DDPM_BETAS, DDPM_STEPS))
DDPM_LOG_RATIOS: list[float] = (0.5 * np.log((1 - _A_SQUARED) / _A_SQUARED)).tolist()
"""ln(b_i / a_i), i = 0..999, ascending: a_i^2 = prod_{j <= i} (1 - beta_j), b_i^2 = 1 - a_i^2."""
T_TOLERANCE = 1e-6  # what float32 does to the ends of the range


class Prediction(Protocol):
    """t (B) in [0, 1]; x_t and outputs (B, C, H, W)."""

    @property
    def t_range(self) -> tuple[float, float]:
        """The t for which the network has been trained."""
        ...

    def embedded_time(self, t: Tensor) -> Tensor:
        """The time that the network was trained with, (B), float32 or better, for t of the same type."""
        ...

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor: ...

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor: ...


class Velocity:
    """Ours, and REPA's (arXiv:2410.06940): nothing to change."""

    t_range = (0.0, 1.0)

    def embedded_time(self, t: Tensor) -> Tensor:
        return t

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return output


class ReversedVelocity(Velocity):
    """SiT's (arXiv:2401.08740): x_s = s x0 + (1 - s) eps with s = 1 - t, output x0 - eps."""

    def embedded_time(self, t: Tensor) -> Tensor:
        return 1 - t

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return -output


class DdpmEps:
    """DiT's (arXiv:2212.09748): eps from z_i = a_i x0 + b_i eps, i = 0 (nearly clean) .. 999, betas linear.

    x_t and z_i are the same sample in two scales where their ratios of noise to data agree, t / (1 - t) = b_i / a_i:
    z_i = x_t / sqrt((1 - t)^2 + t^2). With eps known, x0 = (x_t - t eps) / (1 - t), hence
    velocity = (eps - x_t) / (1 - t). Exact where i is whole. Between two whole i, ln(b / a) is interpolated;
    the scale stays exact, but the network was never trained on such an i. t in float32 gives i to 1e-3 at worst.

    t_range ends where the schedule does: DDPM has no pure data and no pure noise, so neither t = 0 nor t = 1.
    """

    @property
    def t_range(self) -> tuple[float, float]:
        low, high = (1 / (1 + math.exp(-ratio)) for ratio in (DDPM_LOG_RATIOS[0], DDPM_LOG_RATIOS[-1]))
        return low, high

    def embedded_time(self, t: Tensor) -> Tensor:
        return ddpm_index(t).to(t.dtype)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t / ((1 - t).square() + t.square()).sqrt().to(x_t.dtype).view(-1, 1, 1, 1)

    def velocity(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return (output - x_t) / (1 - t).to(x_t.dtype).view(-1, 1, 1, 1)


PREDICTIONS: dict[str, Prediction] = {
    "velocity": Velocity(),
    "reversed_velocity": ReversedVelocity(),
    "ddpm_eps": DdpmEps(),
}


@lru_cache(maxsize=8)
def ddpm_log_ratios(device: torch.device | str) -> Tensor:
    """`DDPM_LOG_RATIOS` in float64. Of numbers, so that an exported graph holds them, not how they are made."""
    return torch.tensor(DDPM_LOG_RATIOS, dtype=torch.float64, device=device)


def ddpm_index(t: Tensor) -> Tensor:
    """The i, fractional, at which DDPM has the noise-to-data ratio of t; (B) to (B) float64 in [0, 999]."""
    log_ratios = ddpm_log_ratios(t.device)
    wanted = t.double().logit()
    above = (log_ratios < wanted.unsqueeze(-1)).sum(-1).clamp(1, DDPM_STEPS - 1)  # searchsorted, which ONNX lacks
    low, high = log_ratios[above - 1], log_ratios[above]
    return (above - 1 + (wanted - low) / (high - low)).clamp(0, DDPM_STEPS - 1)


def checked_t(t: Tensor, t_range: tuple[float, float], name: str) -> Tensor:
    """t, if all of it lies in `t_range`; a range of all t is not looked at.

    On a GPU a look at values would make the host wait, and a compiled or exported graph has no place for it: there a t
    outside becomes NaN, and all that comes of it.

    Raises: ValueError on a CPU.
    """
    low, high = t_range
    if (low, high) == (0.0, 1.0):
        return t
    inside = (t >= low - T_TOLERANCE) & (t <= high + T_TOLERANCE)  # NaN is outside, too
    if t.is_cuda or torch.compiler.is_compiling():
        return torch.where(inside, t, torch.nan)
    if not inside.all():
        outside = t[~inside]
        raise ValueError(
            f"t must lie in [{low:.6f}, {high:.6f}] for a model whose prediction is {name}; got {outside[0].item():g}"
        )
    return t
