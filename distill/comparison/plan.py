"""Estimates the cost of a comparison from a few updates of every arm."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from dar import SiT
from distill.comparison.config import Comparison, Job
from distill.comparison.timing import Cost, time_arms
from distill.conditions import condition_of

FEW = 3
FORWARD_BATCH = 100


@dataclass(frozen=True)
class Estimate:
    """Estimated seconds of one job, by activity."""

    training: float
    validation: float
    drawing: float

    @property
    def total(self) -> float:
        return self.training + self.validation + self.drawing


def estimate(comparison: Comparison, job: Job, update_s: float, forward_s: float) -> Estimate:
    """Estimate a job from the seconds of an update and of one sample's forward pass."""
    config, steps = comparison.config, job.config.train.train.steps
    validations = -(-steps // config.validation.every)
    measuring = config.measuring
    evaluations = measuring.num_steps * (1 if measuring.cfg_scale == 1.0 else 2)
    return Estimate(
        training=steps * update_s,
        validation=validations * 2 * config.validation.num_images * forward_s,
        drawing=measuring.evaluate.num_images * evaluations * forward_s,
    )


@torch.no_grad()
def forward_seconds(job: Job) -> float:
    """Seconds of one sample's forward pass, in batches of the size that validation and drawing use."""
    model = SiT(job.model).eval()
    x = torch.randn(FORWARD_BATCH, *model.sample_shape)
    t, y = torch.rand(FORWARD_BATCH), condition_of(model).balanced(FORWARD_BATCH)
    times = []
    for _ in range(FEW):
        started = time.perf_counter()
        model(x, t, y)
        times.append(time.perf_counter() - started)
    return statistics.median(times) / FORWARD_BATCH


def print_plan(comparison: Comparison) -> None:
    """Print parameters, milliseconds per update and estimated time of every arm at every size, and of all jobs."""
    seeds = comparison.config.seeds
    by_arm = {(job.size, job.arm): job for job in comparison.jobs if job.seed == seeds[0]}
    table = Table(title="one job of each, in seconds", title_justify="left")
    for heading in ("size", "arm", "parameters", "steps", "ms/step", "train", "validate", "draw"):
        table.add_column(heading, no_wrap=True)
    total = 0.0
    for cost in time_arms(comparison, FEW):
        job = by_arm[cost.size, cost.arm]
        found = estimate(comparison, job, statistics.median(cost.seconds), forward_seconds(job))
        total += found.total
        table.add_row(*_row(job, cost, found))
    console = Console()
    console.print(table)
    console.print(
        f"{len(comparison.jobs)} jobs ({len(by_arm)} of the table, seeds {', '.join(map(str, seeds))}) in "
        f"{comparison.config.output}: about {total * len(seeds) / 60:.0f} min of one process",
        highlight=False,
        soft_wrap=True,
    )


def _row(job: Job, cost: Cost, found: Estimate) -> list[str]:
    seconds = (f"{part:.0f}" for part in (found.training, found.validation, found.drawing))
    steps = job.config.train.train.steps
    return [job.size, job.arm, f"{cost.parameters:,}", f"{steps:,}", f"{cost.ms:.0f}", *seconds]
