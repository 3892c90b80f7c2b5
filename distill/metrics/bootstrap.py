"""Intervals over images: how far a figure would move with another draw of as many images.

The reference side (data, teacher) is held fixed. An interval is the value and 1.96 bootstrap standard errors to
either side: 50 to 200 resamples tell a standard error, but not the 2.5 and 97.5 percentiles, which lie too close to
the value then. Nor does the spread see that resampling biases distances upwards, for a resample holds doubles.
Shares have a closed form. Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 6.
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
    """A figure and its confidence limits, all in the figure's own unit; limits of nan: not estimated."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, float | None]:
        """For JSON, which knows no nan: null in its place."""
        return {name: None if math.isnan(number) else number for name, number in asdict(self).items()}

    @classmethod
    def of_plain(cls, plain: dict[str, float | None]) -> Interval:
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
        statistic: takes indices [num_items], int64, with doubles, and gives a number.
        minimum: smallest value the figure can have (0 for a distance); the limits are cut there.

    Raises: ValueError where num_items is below 2, num_resamples negative, or level outside (0, 1).
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
    """`bootstrap` of a statistic of the mean row of `table`, as one matrix product.

    Args:
        table: one row per image, [N, K].
        statistic: takes the mean row [K], float64, and gives a number.

    Raises: ValueError as `bootstrap`, or where table is not [N, K].
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

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n); of some width at 0 and 1, too.
    Wilson (1927), J. Am. Stat. Assoc. 22.

    Raises: ValueError where share is outside [0, 1], num_items below 1, or level outside (0, 1).
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    if num_items < 1:
        raise ValueError(f"a share of {num_items} items has no interval")
    z2 = _quantile(level) ** 2 / num_items
    centre, half = share + z2 / 2, math.sqrt(z2 * (share * (1 - share) + z2 / 4))
    low, high = (centre - half) / (1 + z2), (centre + half) / (1 + z2)
    return Interval(share, max(0.0, min(low, share)), min(1.0, max(high, share)))  # rounding, at 0 and 1


def resample_counts(num_items: int, num_resamples: int, seed: int) -> Tensor:
    """How often each item is in each resample, [num_resamples, num_items], float64."""
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
    """`value` and z(level) standard deviations of `resampled` [R] to either side; limits of nan where R < 2."""
    if len(resampled) < 2:
        return Interval(value, math.nan, math.nan)
    margin = _quantile(level) * float(resampled.std(ddof=1))
    return Interval(value, max(value - margin, minimum), value + margin)


def _quantile(level: float) -> float:
    """z such that a normal variable lies within z standard deviations with probability `level`."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _check(num_items: int, num_resamples: int) -> None:
    if num_items < 2:
        raise ValueError(f"a bootstrap needs at least 2 images, not {num_items}")
    if num_resamples < 0:
        raise ValueError(f"num_resamples is {num_resamples}; it must not be negative")
