"""Cost of an update, measured apart from the trainings, which may share a machine: time side by side, and memory."""

from __future__ import annotations

import json
import statistics
import time
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from distill.comparison.config import Comparison, Job
from distill.comparison.training import build_task, load_data, num_trainable
from distill.data.base import Dataset
from distill.errors import reading
from distill.files import write_text
from distill.objectives.teacher import TeacherTask

TIMING_FILE = "timing.json"
WARM_UP = 2


@dataclass(frozen=True)
class Cost:
    """Cost of one arm at one size.

    seconds: of single updates. memory_bytes: weights, EMA, Adam's moments and the peak memory that an update adds.
    """

    size: str
    arm: str
    parameters: int
    seconds: list[float]
    memory_bytes: int

    @property
    def ms(self) -> float:
        return 1e3 * statistics.median(self.seconds)

    @property
    def quartiles_ms(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return 1e3 * low, 1e3 * high


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors created inside the context: `current` now, `peak` at most.

    The count does not depend on the allocator, so it is the same on every machine. Memory inside kernels is not
    counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = 0
        self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_pointer(tensor) for tensor in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if _pointer(tensor) not in before:  # neither in place nor a view
                self._add(tensor)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if pointer in self._live:
            return
        self._live[pointer] = storage.nbytes()
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._drop, pointer)

    def _drop(self, pointer: int) -> None:
        self.current -= self._live.pop(pointer, 0)


def _pointer(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in _tensors(item)]


def update_memory(task: TeacherTask, step: int) -> int:
    """Peak bytes of update `step`: weights, EMA, Adam's two moments, and the tensors created in the update."""
    with LiveBytes() as live:
        task.update(step)
    weights = sum(p.numel() * p.element_size() for p in task.learner.module.parameters())
    moments = sum(
        value.numel() * value.element_size()
        for state in task.learner.optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
    return 2 * weights + moments + live.peak


def measure_costs(jobs: list[Job], data: Dataset, repeats: int) -> list[Cost]:
    """Time complete updates of the jobs' arms in turn, in this process, `repeats` of each after a warm-up."""
    tasks = [build_task(job, data) for job in jobs]
    seconds: list[list[float]] = [[] for _ in jobs]
    for step in track(range(WARM_UP + repeats), description=jobs[0].size):
        for task, times in zip(tasks, seconds, strict=True):
            started = time.perf_counter()
            task.update(step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if step >= WARM_UP:
                times.append(time.perf_counter() - started)
    return [
        Cost(
            job.size,
            job.arm,
            num_trainable(cast(nn.Module, task.trained_model)),
            times,
            update_memory(task, WARM_UP + repeats),
        )
        for job, task, times in zip(jobs, tasks, seconds, strict=True)
    ]


def time_arms(comparison: Comparison, repeats: int) -> list[Cost]:
    """Costs of every arm at every size."""
    first_seed = [job for job in comparison.jobs if job.seed == comparison.config.seeds[0]]
    data = load_data(first_seed[0].config.train, "train")
    return [
        cost
        for size in comparison.sizes
        for cost in measure_costs([job for job in first_seed if job.size == size], data, repeats)
    ]


def timing_path(comparison: Comparison) -> Path:
    return Path(comparison.config.output, TIMING_FILE)


def save_costs(costs: list[Cost], path: Path) -> None:
    write_text(path, json.dumps([asdict(cost) for cost in costs]) + "\n")


def load_costs(path: Path) -> list[Cost]:
    """Read what `save_costs` wrote; an empty list if there is no file."""
    if not path.is_file():
        return []
    with reading(path):
        return [Cost(**cost) for cost in json.loads(path.read_bytes())]
