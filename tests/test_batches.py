"""What a process draws of an update: the numbers of one process alone, and of the data no more than its own rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dar import SiT
from distill.conditions import ClassLabels
from distill.config import FlowMatchingConfig, LoopConfig, TConfig, TrainConfig
from distill.data.base import Noise, shuffled_indices
from distill.objectives.teacher import TeacherTask
from distill.seeds import generator_for
from distill.training.batches import rank_noise
from tests.conftest import tiny_config


class Latents:
    """Twelve samples that are drawn anew at each access; which ones were asked for is kept."""

    sample_shape = (1, 8, 8)
    condition = ClassLabels(3)

    def __init__(self) -> None:
        self.read: list[int] = []
        self.mean = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return 12

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        self.read += indices.tolist()
        mean = self.mean[indices]
        return mean + 0.3 * noise(mean.shape), indices % 3


def one_of(processes: int, rank: int) -> Accelerator:
    """As much of an accelerator as drawing looks at."""
    fake: Any = SimpleNamespace(num_processes=processes, process_index=rank, device=torch.device("cpu"))
    return cast(Accelerator, fake)


@pytest.fixture
def task(accelerator) -> TeacherTask:
    loop = LoopConfig(batch_size=4, seed=5)
    settings = FlowMatchingConfig(label_dropout=0.4, t=TConfig("logit_normal", low=0.2, high=0.9, mean=0.5, std=0.7))
    config = TrainConfig("out", tiny_config(), flow_matching=settings, train=loop)
    return TeacherTask(config, SiT(tiny_config()), Latents(), accelerator)


def drawn_at_once(data: Latents, step: int) -> tuple[Tensor, ...]:
    """x0, eps, t, y as one generator gives them, one after the other."""
    generator = generator_for(5, "flow_matching", step)
    indices = shuffled_indices(12, 4, step, seed=5)
    x0 = data.mean[indices] + 0.3 * torch.randn(4, 1, 8, 8, generator=generator)
    eps = torch.randn(4, 1, 8, 8, generator=generator)
    u = (0.5 + 0.7 * torch.special.ndtri(torch.rand(4, generator=generator))).sigmoid()
    t = 0.2 + (0.9 - 0.2) * u
    dropped = torch.rand(4, generator=generator) < 0.4
    return x0, eps, t, torch.where(dropped, 3, indices % 3)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_draw_together_what_one_draws(task: TeacherTask, processes: int) -> None:
    data = task.data
    assert isinstance(data, Latents)
    labels = []
    for step in (0, 2, 7):
        shares = []
        for rank in range(processes):
            task.accelerator = one_of(processes, rank)
            shares.append(task._draw(step))
        together = [torch.cat(parts) for parts in zip(*shares, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(together, drawn_at_once(data, step), strict=True))
        labels += together[3].tolist()
    assert 0 < labels.count(3) < len(labels)  # some conditions are dropped


def test_a_process_reads_its_own_rows(task: TeacherTask) -> None:
    data = task.data
    assert isinstance(data, Latents)
    task.accelerator = one_of(2, 1)
    task._draw(1)
    assert data.read == shuffled_indices(12, 4, 1, seed=5)[2:].tolist()


def test_rows_of_noise() -> None:
    whole = torch.randn(6, 2, generator=generator_for(1))
    rows = [rank_noise(generator_for(1), one_of(3, rank))(torch.Size([2, 2])) for rank in range(3)]
    assert torch.equal(torch.cat(rows), whole)
