"""Which convention a model follows, seen in its velocities at noised blank samples: x_t = t eps, x0 = 0.

Two numbers, each with a closed form for Gaussian data of variances l_i along its principal axes:

    slope of the velocity against the noise    mean_i t (t - (1-t) l_i) / ((1-t)^2 l_i + t^2), which is 1 at t = 1
    share of the noise found at t = 1/2        <x_t + (1-t) velocity, eps> / <eps, eps> = mean_i 1 / (1 + l_i)

For data of mean variance s^2 the share is at least 1 / (1 + s^2), whatever their structure (Jensen): a half for unit
variance, more the more structure there is. The four ways to read one network differ in the two together:

    as it is: 1 and the share q    sign turned: -1 and 1 - q    t turned: not 1 and q    both: 1 - q

A network that has hardly learned answers with little more than zero at both: a share of a half and no slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, condition_of, slice_rows, to_device
from distill.models.backbone import Backbone
from distill.seeds import generator_for

MOST_SAMPLES, LEAST_SAMPLES = 40, 4
VALUES, VALUES_AT_ONCE = 2**20, 2**18  # of samples: large ones need fewer, and are asked of one by one
SLOPE_RANGE = (0.5, 1.5)
LEAST_SHARE = 0.4
MIDDLE = 0.5
# RMS over that of the noise. Trained, also with t turned: 0.6 to 1.1 at the noise. In a training from zero 0.02 to 0.3
# in the first 20 updates and 0.4 to 0.5 after 40; from 80 on the convention shows.
LEAST_SIZE = 0.5
# A network that ends before t = 1 predicts the noise. Its velocity is (eps - x_t) / (1 - t), so that an error of it is
# 1 / (1 - t) times as large in the slope: 158 times where DDPM's schedule ends, 10 times here. With 3 % of error and
# unit variance slopes lie in [0.58, 1.18] here.
WELL_POSED_T = 0.9


@dataclass(frozen=True)
class Convention:
    """slope: at t, as near to the noise as can be asked. share: of the noise that is found at t = 1/2.

    size: RMS of the output over that of the noise, the larger of both.
    """

    t: float
    slope: float
    share: float
    size: float

    @property
    def complaint(self) -> str:
        """What is wrong, for people; "" where nothing is."""
        low, high = SLOPE_RANGE
        slope_fits, share_fits = low <= self.slope <= high, self.share >= LEAST_SHARE
        if slope_fits and share_fits:
            return ""
        if self.size < LEAST_SIZE:
            return (
                f"its output is {self.size:.2g} of the size of the noise, that of a trained network about 1, and has "
                f"slope {self.slope:.2g} against the noise: it has hardly learned (train it longer), or its files are "
                "of another kind than they were read as"
            )
        if share_fits:
            guess = "a slope of the other sign or near 0 means the opposite direction of t"
        elif self.slope < -low:
            guess = "both mean the opposite sign"
        else:
            guess = "so small a share means the opposite sign and direction of t, as SiT's own weights have them"
        return (
            f"at t = {self.t:.3g} the output has slope {self.slope:.3g} against the noise, and finds a share "
            f"{self.share:.2f} of it at t = 0.5; velocity = eps - x0 has a slope of about 1 ({low:g} to {high:g}) and "
            f"a share of at least {LEAST_SHARE:g}: {guess}"
        )


def num_samples(sample_shape: tuple[int, ...]) -> int:
    """How many samples a model is asked about."""
    return min(MOST_SAMPLES, max(LEAST_SAMPLES, VALUES // math.prod(sample_shape)))


def rows_at_once(sample_shape: tuple[int, ...]) -> int:
    """How many of them in one pass."""
    return min(MOST_SAMPLES, max(1, VALUES_AT_ONCE // math.prod(sample_shape)))


def in_parts(model: Backbone, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
    """model(x_t, t, y), a few rows at a time."""
    rows = rows_at_once(tuple(x_t.shape[1:]))
    parts = [slice(first, first + rows) for first in range(0, len(x_t), rows)]
    return torch.cat([model(x_t[p], t[p], slice_rows(y, p.start, p.stop)) for p in parts])


@torch.no_grad()
def convention_of(model: Backbone, seed: int = 0) -> Convention:
    """Ask a trained model, unguided, with as many samples of every condition."""
    device = next(model.parameters()).device
    num = num_samples(model.sample_shape)
    eps = torch.randn(num, *model.sample_shape, generator=generator_for(seed, "convention")).to(device)
    y = to_device(condition_of(model).balanced(num), device)
    noisiest = model.t_range[1]
    t = noisiest if noisiest == 1 else min(noisiest, WELL_POSED_T)
    noisy, middle = _velocity_at(model, t, eps, y), _velocity_at(model, MIDDLE, eps, y)
    size = max(_rms(noisy), _rms(middle)) / _rms(eps)
    found = MIDDLE * eps + (1 - MIDDLE) * middle
    return Convention(t, _slope(noisy, eps), _slope(found, eps), size)


def _velocity_at(model: Backbone, t: float, eps: Tensor, y: ConditionBatch) -> Tensor:
    return in_parts(model, t * eps, torch.full((len(eps),), t, device=eps.device), y)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _slope(output: Tensor, eps: Tensor) -> float:
    return float((output * eps).sum() / eps.square().sum())
