"""Collects the results of finished jobs into one table by quantity, size, arm and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.comparison.config import Comparison, Job
from distill.comparison.jobs import is_finished
from distill.comparison.measuring import MEASURES_FILE, MeasuredJob
from distill.comparison.statistics import departure, summarise, value_at
from distill.comparison.timing import Cost, load_costs, timing_path
from distill.comparison.training import TRAINING_FILE, Trained
from distill.evaluation.references import reference_file
from distill.metrics import ReferenceStatistics, data_values


@dataclass(frozen=True)
class Quantity:
    """A value of one job. better: whether lower or higher is better; None if neither is better by itself."""

    title: str
    digits: int
    better: Literal["lower", "higher"] | None


QUANTITIES = {
    "loss": Quantity("loss at equal steps, EMA", 4, "lower"),
    "loss_raw": Quantity("loss at equal steps, raw weights", 4, "lower"),
    "loss_at_time": Quantity("loss at equal time, as recorded", 4, "lower"),
    "loss_at_cost": Quantity("loss at equal time, timed side by side", 4, "lower"),
    "frechet": Quantity("Fréchet distance", 3, "lower"),
    "class_agreement": Quantity("class agreement", 3, "higher"),
    "high_frequency_ratio": Quantity("high-frequency share", 4, None),
    "high_frequency_departure": Quantity("&#124;ln(high-frequency share / the data's)&#124;", 3, "lower"),
    "spectral_distance_data": Quantity("spectral distance, dB", 3, "lower"),
    "gradient_distance_data": Quantity("gradient distance", 4, "lower"),
    "edge_width": Quantity("edge width, pixels", 3, None),
    "sparsity_fine": Quantity("sparsity, 2 pixels", 3, None),
    "grain": Quantity("grain x 1000", 2, None),
    "magnitude": Quantity("magnitude, last RMS / first", 2, None),
    "magnitude_departure": Quantity("&#124;ln(last RMS / first)&#124;", 3, "lower"),
    "gradient": Quantity("gradient, first RMS / last", 2, None),
    "gradient_departure": Quantity("&#124;ln(first gradient / last)&#124;", 3, "lower"),
    "redundancy": Quantity("neighbours' cosine, second half", 3, "lower"),
}


@dataclass(frozen=True)
class Result:
    """A finished job and its results."""

    job: Job
    trained: Trained
    measured: MeasuredJob

    @property
    def train_s(self) -> float:
        return self.trained.curve[-1].train_s

    def loss_after(self, seconds: float, seconds_of: Callable[[int, float], float]) -> float:
        """Loss (`CurvePoint.better`) after `seconds`, on the clock `seconds_of(step, recorded seconds)`."""
        curve = self.trained.curve
        return value_at([seconds_of(p.step, p.train_s) for p in curve], [p.better for p in curve], seconds)


Figures = dict[str, dict[str, dict[str, dict[int, float]]]]
"""figures[quantity][size][arm][seed]."""


@dataclass(frozen=True)
class Gathered:
    """All results. missing: the unfinished jobs. data: values of the data itself."""

    comparison: Comparison
    results: list[Result]
    missing: list[Job]
    costs: dict[tuple[str, str], Cost]
    data: dict[str, float]
    figures: Figures

    def by_seed(self, quantity: str, size: str, arm: str) -> dict[int, float]:
        """The finite values by seed."""
        values = self.figures[quantity][size].get(arm, {})
        return {seed: value for seed, value in values.items() if math.isfinite(value)}

    @property
    def sizes(self) -> list[str]:
        """Sizes with a finished job."""
        return [size for size in self.comparison.sizes if any(r.job.size == size for r in self.results)]

    def of(self, size: str, arm: str) -> list[Result]:
        return [r for r in self.results if (r.job.size, r.job.arm) == (size, arm)]


def gather(comparison: Comparison) -> Gathered:
    """Read every finished job. Raises: UserError if no job is finished or a folder holds another configuration."""
    done = [job for job in comparison.jobs if is_finished(comparison, job)]
    results = [
        Result(job, Trained.load(job.folder / TRAINING_FILE), MeasuredJob.load(job.folder / MEASURES_FILE))
        for job in done
    ]
    costs = {(cost.size, cost.arm): cost for cost in load_costs(timing_path(comparison))}
    file = reference_file(comparison.config.measuring.evaluate, None)
    data = data_values(ReferenceStatistics.load(file)) if file else {}
    missing = [job for job in comparison.jobs if job not in done]
    return Gathered(comparison, results, missing, costs, data, tabulate(results, comparison, costs, data))


def tabulate(
    results: Sequence[Result],
    comparison: Comparison,
    costs: dict[tuple[str, str], Cost],
    data: dict[str, float],
) -> Figures:
    """Every quantity of every result; nan if it is not known yet."""
    clock = comparison.config.baselines[0]
    finished = {(r.job.size, r.job.arm, r.job.seed): r for r in results}
    figures: Figures = {name: {size: {} for size in comparison.sizes} for name in QUANTITIES}
    for result in results:
        job = result.job
        baseline = finished.get((job.size, clock, job.seed))
        values = {**own_figures(result, data), **figures_at_time(result, baseline, costs)}
        for name, value in values.items():
            figures[name][job.size].setdefault(job.arm, {})[job.seed] = value
    return figures


def own_figures(result: Result, data: dict[str, float]) -> dict[str, float]:
    """Quantities that need only this result and the data."""
    last = result.trained.curve[-1]
    measured = {name: interval.value for name, interval in result.measured.measures.items() if name in QUANTITIES}
    shape = summarise(result.measured.symptoms)
    high_frequency = measured["high_frequency_ratio"] / data["high_frequency_ratio"]
    return {
        "loss": last.ema,
        "loss_raw": last.raw,
        **measured,
        "high_frequency_departure": departure(high_frequency),
        **shape,
        "magnitude_departure": departure(shape["magnitude"]),
        "gradient_departure": departure(shape["gradient"]),
    }


def figures_at_time(result: Result, baseline: Result | None, costs: dict[tuple[str, str], Cost]) -> dict[str, float]:
    """Loss when the baseline of the same seed is done, on the recorded clock and on the side-by-side timing."""
    if baseline is None:
        return {"loss_at_time": math.nan, "loss_at_cost": math.nan}
    at_time = result.loss_after(baseline.train_s, lambda step, seconds: seconds)
    mine, other = (costs.get((r.job.size, r.job.arm)) for r in (result, baseline))
    if mine is None or other is None:
        return {"loss_at_time": at_time, "loss_at_cost": math.nan}
    spent = baseline.trained.curve[-1].step * other.ms
    return {"loss_at_time": at_time, "loss_at_cost": result.loss_after(spent, lambda step, _: step * mine.ms)}
