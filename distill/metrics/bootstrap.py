"""Confidence intervals over images: how far a value would move with another sample of the same number of images.

The reference side (data, teacher) is fixed. An interval is the value plus and minus 1.96 bootstrap standard errors.
50 to 200 resamples are enough to estimate a standard error, but not the 2.5 and 97.5 percentiles, which come out too
close to the value. A resample contains duplicates, which biases distances upwards; the standard error does not
include this bias. Shares have a closed form.
Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A value and its confidence limits, all in the unit of the value; limits of nan mean not estimated."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """The interval for JSON, with null for nan, which JSON does not have."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}

    @classmethod
    def from_json(cls, plain: dict[str, float | None]) -> Interval:
        return cls(**{name: math.nan if number is None else number for name, number in plain.items()})


def bootstrap(
    statistic: Callable[[Tensor], float],
    num_items: int,
    *,
    num_resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    minimum: float = -float("inf"),
) -> Interval:
    """Bootstrap interval of any statistic of images.

    Args:
        statistic: takes indices [num_items], int64, with duplicates, and returns a number.
        minimum: smallest possible value (0 for a distance); the lower limit is clipped to it.

    Raises: ValueError if num_items is below 2, num_resamples is negative, or level is outside (0, 1).
    """
    _check(num_items, num_resamples)
    generator = torch.Generator().manual_seed(seed)
    value = float(statistic(torch.arange(num_items)))
    draws = (torch.randint(num_items, (num_items,), generator=generator) for _ in range(num_resamples))
    resampled = [float(statistic(indices)) for indices in draws]
    return interval_from_resamples(value, np.array(resampled), level=level, minimum=minimum)


def bootstrap_mean(
    table: Tensor,
    statistic: Callable[[Tensor], float],
    *,
    num_resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    minimum: float = -float("inf"),
) -> Interval:
    """`bootstrap` of a statistic of the mean row of `table`, computed as one matrix product.

    Args:
        table: one row per image, [N, K].
        statistic: takes the mean row [K], float64, and returns a number.

    Raises: ValueError as `bootstrap`, or if table is not [N, K].
    """
    if table.ndim != 2:
        raise ValueError(f"table has shape {list(table.shape)}; it must be [N, K]")
    num_items = len(table)
    _check(num_items, num_resamples)
    rows = table.double()
    means = resample_counts(num_items, num_resamples, seed) @ rows / num_items  # [R, K]
    resampled = np.array([float(statistic(row)) for row in means])
    return interval_from_resamples(float(statistic(rows.mean(0))), resampled, level=level, minimum=minimum)


def share_interval(share: float, num_items: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of the share p of n = `num_items` yes-or-no items.

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n). Its width is not 0 at p = 0 or p = 1.
    Wilson (1927), J. Am. Stat. Assoc. 22.

    Raises: ValueError if share is outside [0, 1], num_items is below 1, or level is outside (0, 1).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    if num_items < 1:
        raise ValueError(f"a share of {num_items} items has no interval")
    z2 = _quantile(level) ** 2 / num_items
    centre, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    low, high = (centre - half) / (1 + z2), (centre + half) / (1 + z2)
    return Interval(share, low, min(1.0, max(high, share)))  # undo rounding at 1; at 0 there is none


def resample_counts(num_items: int, num_resamples: int, seed: int) -> Tensor:
    """Number of times that each item occurs in each resample, [num_resamples, num_items], float64."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(num_resamples, num_items, dtype=torch.float64)
    for row in counts:
        drawn = torch.randint(num_items, (num_items,), generator=generator)
        row += torch.bincount(drawn, minlength=num_items)
    return counts


def interval_from_resamples(
    value: float,
    resampled: np.ndarray,
    *,
    level: float = 0.95,
    minimum: float = -float("inf"),
) -> Interval:
    """`value` plus and minus z(level) standard deviations of `resampled` [R]; limits of nan if R < 2."""
    if len(resampled) < 2:
        return Interval(value, math.nan, math.nan)
    margin = _quantile(level) * float(resampled.std(ddof=1))
    return Interval(value, max(value - margin, minimum), value + margin)


def _quantile(level: float) -> float:
    """The z for which a normal variable lies within z standard deviations with probability `level`."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check(num_items: int, num_resamples: int) -> None:
    if num_items < 2:
        raise ValueError(f"a bootstrap needs at least 2 images, not {num_items}")
    if num_resamples < 0:
        raise ValueError(f"num_resamples is {num_resamples}; it must not be negative")
