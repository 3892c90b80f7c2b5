"""Percentile bootstrap over images: how far a figure would move with another draw of as many images.

The reference side (data, teacher) is held fixed. Resampling biases distances upwards, for a resample holds
doubles; the resampled values are therefore moved by their estimated bias, mean(resampled) - value, so that
the interval lies around the value. For means and shares that bias is nil.
Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 10 and 13.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence limits, all in the figure's own unit; limits of nan: not estimated."""

    value: float
    low: float
    high: float


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
    _check(num_items, num_resamples, level)
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
    _check(num_items, num_resamples, level)
    rows = table.double()
    means = resample_counts(num_items, num_resamples, seed) @ rows / num_items  # [R, K]
    resampled = np.array([float(statistic(row)) for row in means])
    return interval_from_resamples(float(statistic(rows.mean(0))), resampled, level=level, minimum=minimum)


def bootstrap_share(
    share: float, num_items: int, *, num_resamples: int = 200, seed: int = 0, level: float = 0.95
) -> Interval:
    """Bootstrap interval of the share of `num_items` yes-or-no items: resampling these is a binomial draw.

    Raises: ValueError as `bootstrap`, or where share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must lie in [0, 1]")
    _check(num_items, num_resamples, level)
    resampled = np.random.default_rng(seed).binomial(num_items, share, num_resamples) / num_items
    return interval_from_resamples(share, resampled, level=level, minimum=0.0, maximum=1.0)


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
    maximum: float = float("inf"),
) -> Interval:
    """Percentile interval of `resampled` [R] after removing its bias; limits of nan where R < 2."""
    if len(resampled) < 2:
        return Interval(value, float("nan"), float("nan"))
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled - (resampled.mean() - value), [tail, 100 - tail])
    return Interval(value, float(max(low, minimum)), float(min(high, maximum)))


def _check(num_items: int, num_resamples: int, level: float) -> None:
    if num_items < 2:
        raise ValueError(f"a bootstrap needs at least 2 images, not {num_items}")
    if num_resamples < 0:
        raise ValueError(f"num_resamples is {num_resamples}; it must not be negative")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
