"""A job queue that any number of processes share; a process that dies blocks no job."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from distill.comparison.config import Comparison, Job
from distill.comparison.measuring import MEASURES_FILE, is_measured, measure_job
from distill.comparison.training import held_out, is_trained, load_data, train_job
from distill.errors import NonFiniteError
from distill.evaluation.evaluator import Evaluator
from distill.processes import default_device
from distill.progress import logger


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process got the claim. The claim ends with the context, or when the process dies.

    The claim is a lock of the operating system, not the existence of a file, so it cannot outlive its process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Queued(Protocol):
    """What a queue asks of a job."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path: ...


Q = TypeVar("Q", bound=Queued)


def claim_path(job: Queued) -> Path:
    return job.folder.with_name(f"{job.folder.name}.lock")


def run_queue(jobs: Sequence[Q], is_done: Callable[[Q], bool], do: Callable[[Q], None]) -> list[Q]:
    """Do every job, in order, that is not done and that no other process works on, until no such job is left.

    A job whose training diverges is skipped.

    Returns: the jobs that are still not done: they diverged, or other processes work on them.
    """
    diverged: set[str] = set()
    open_jobs = [job for job in jobs if not is_done(job)]
    worked = True
    while open_jobs and worked:  # repeated in case another process died meanwhile
        worked = False
        for job in open_jobs:
            if job.name in diverged:
                continue
            with claimed(claim_path(job)) as mine:
                if not mine or is_done(job):
                    continue
                worked = True
                try:
                    do(job)
                except NonFiniteError as error:
                    logger.error(f"{job.name}: {error}")
                    diverged.add(job.name)
        open_jobs = [job for job in open_jobs if not is_done(job)]
    return open_jobs


def is_finished(comparison: Comparison, job: Job) -> bool:
    """Whether a job is trained and measured with this configuration.

    Raises: UserError if it was trained with another configuration.
    """
    return is_trained(job) and is_measured(job, comparison.config.measuring)


def run_jobs(comparison: Comparison) -> list[Job]:
    """Train and measure the missing jobs. Returns: the jobs that are not finished, see `run_queue`."""
    config, first = comparison.config, comparison.jobs[0].config
    for job in comparison.jobs:
        is_trained(job)  # raises for a folder of another configuration, before any compute
    data, test = load_data(first.train, "train"), load_data(first.train, "test")
    samples = held_out(test, config.validation, first.train.flow_matching.t)
    evaluator = Evaluator(config.measuring.evaluate, default_device(), tuple(data.sample_shape))
    clock = Clock(comparison)

    def do(job: Job) -> None:
        with clock.of(job):
            if not is_trained(job):
                train_job(job, data, samples)
            measure_job(job, config.measuring, evaluator, samples)

    return run_queue(comparison.jobs, lambda job: is_finished(comparison, job), do)


class Clock:
    """Logs finished jobs and estimates the remaining time from the jobs of this process."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._seconds: dict[tuple[str, str], float] = {}

    @contextlib.contextmanager
    def of(self, job: Job) -> Iterator[None]:
        logger.info(f"{job.name} ...")
        started = time.perf_counter()
        yield
        self._seconds[job.size, job.arm] = time.perf_counter() - started
        logger.info(f"{job.name}: {self._seconds[job.size, job.arm]:.0f} s; {self.outlook()}")

    def outlook(self) -> str:
        """Number of finished jobs, and the time of all others (including those in progress) in one process."""
        jobs = self._comparison.jobs
        left = [job for job in jobs if not (job.folder / MEASURES_FILE).exists()]
        minutes = sum(self.estimate(job) for job in left) / 60
        return (
            f"{len(jobs) - len(left)} of {len(jobs)} jobs done, about {minutes:.0f} min left, shared by all processes"
        )

    def estimate(self, job: Job) -> float:
        """Seconds of the same arm at the same size; otherwise the mean of that size, otherwise the mean of all."""
        known = self._seconds
        same_size = [seconds for (size, _), seconds in known.items() if size == job.size]
        either = same_size or list(known.values())
        return known.get((job.size, job.arm), sum(either) / len(either))
