"""Statistics of values by seed: pure functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from dar.chunks import best_chunk_size
from distill.metrics import Interval

LEVEL = 0.95


class Verdict(StrEnum):
    HOLDS = "holds"
    DOES_NOT_HOLD = "does not hold"
    NOT_DECIDED = "not decided"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Paired:
    """Differences a - b by seed, their mean with a t interval, and the p-value of the paired t-test.

    With fewer than 2 seeds, the limits and p are nan.
    """

    differences: tuple[float, ...]
    mean: Interval
    p: float

    @property
    def same_sign(self) -> bool:
        """Whether all seeds have the same sign."""
        return all(d > 0 for d in self.differences) or all(d < 0 for d in self.differences)


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and its 95 % t interval, mean +- t_{n-1} s / sqrt(n); limits of nan for a single value."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return Interval(float(data.mean()), math.nan, math.nan)
    half = stats.t.ppf(0.5 + LEVEL / 2, len(data) - 1) * data.std(ddof=1) / math.sqrt(len(data))
    return Interval(float(data.mean()), float(data.mean() - half), float(data.mean() + half))


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired | None:
    """The paired t-test of a against b over their common seeds; None if there are none."""
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    differences = tuple(a[seed] - b[seed] for seed in seeds)
    return Paired(differences, mean_interval(differences), _p_value(differences))


def _p_value(differences: Sequence[float]) -> float:
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:  # no spread: the statistic is infinite, or 0 / 0 if all differences are 0
        return 1.0 if differences[0] == 0 else 0.0
    n = len(differences)
    t = np.mean(differences) / (np.std(differences, ddof=1) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def verdict(less: Paired) -> Verdict:
    """Whether the differences are below zero; decided only if the interval excludes zero and all signs are equal."""
    mean = less.mean
    if math.isnan(mean.low) or not less.same_sign or mean.low <= 0 <= mean.high:
        return Verdict.NOT_DECIDED
    return Verdict.HOLDS if mean.high < 0 else Verdict.DOES_NOT_HOLD


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict on a claim with several parts: one part that fails refutes it, and one open part leaves it open."""
    for decisive in (Verdict.DOES_NOT_HOLD, Verdict.NOT_TESTED, Verdict.NOT_DECIDED):
        if decisive in verdicts:
            return decisive
    return Verdict.HOLDS if verdicts else Verdict.NOT_TESTED


def value_at(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """y at `at`, linear between the points (x ascending); nan before the first point, the last y after the last."""
    return float(np.interp(at, x, y, left=math.nan))


def end_ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator; nan if either is not positive."""
    return numerator / denominator if numerator > 0 and denominator > 0 else math.nan


def summarise(profiles: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """One number for each symptom along depth.

    magnitude: RMS(z_K) / RMS(z_1), the output of the last block over that of the first.
    gradient: RMS(dL/dv) of the first block over that of the last.
    redundancy: mean cos(z_k, z_{k+1}) over the second half of depth.
    """
    hidden, gradient, cosine = (profiles[name] for name in ("hidden_rms", "gradient_rms", "neighbour_cosine"))
    return {
        "magnitude": end_ratio(hidden[-1], hidden[1]),
        "gradient": end_ratio(gradient[0], gradient[-1]),
        "redundancy": float(np.mean(cosine[len(cosine) // 2 :])),
    }


def departure(ratio: float) -> float:
    """|ln ratio|: 0 for a flat profile, and equal for growth and decay by the same factor."""
    return abs(math.log(ratio)) if ratio > 0 else math.nan


def chunk_sizes_of_rule(num_sublayers: int, low: float = 0.4, high: float = 0.6) -> tuple[float, float]:
    """The range of S* for the paper's cosines of neighbouring sources: S* at a = `high` and at a = `low`."""
    return best_chunk_size(num_sublayers, high), best_chunk_size(num_sublayers, low)
