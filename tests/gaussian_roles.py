"""A distillation whose every part is known in closed form: one class N(0.5, 0.4^2), the null class N(0, 1)."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import config_from_overrides
from distill.models.step_aware import StepAware
from distill.objectives import Network, RunConfig
from distill.objectives.task import DistillationTask, Models
from distill.sampling import few_step_sampler, t_like
from distill.seeds import generator_for

SHAPE = (1, 1, 4)
MEAN, STD = 0.5, 0.4
SETTINGS = (
    "output=unused",
    "student.rollout=every_step",
    "student.optim.lr=0.01",
    "student.optim.decay_fraction=0.5",
    "objective.fake_score.updates=3",
    "objective.fake_score.optim.lr=0.02",
    "objective.fake_score.optim.decay_fraction=0.5",
    "train.batch_size=64",
    "train.steps=250",
    "train.log_every=1000",
    "train.grid_every=1000",
)


class Gaussian(nn.Module):
    """The exact velocity of data N(mean, std^2), a backbone whose embedding of t is its mean and ln std.

    E[x0 | x_t] = mean + (1-t) std^2 / ((1-t)^2 std^2 + t^2) (x_t - (1-t) mean); velocity = (x_t - E) / t.
    """

    sample_shape, t_range, null_label = SHAPE, (0.001, 1.0), 1
    gradient_checkpointing, t_embedding_size = False, 2

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.moments = nn.Parameter(torch.tensor([mean, torch.tensor(std).log().item()]))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, t_offset: Tensor | None = None) -> Tensor:
        moments = self.moments.expand(len(x_t), 2) + (0 if t_offset is None else t_offset)
        return velocity(x_t, t, *moments.unbind(1))


class Teacher(Gaussian):
    """The class's law, or the null class's."""

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, t_offset: Tensor | None = None) -> Tensor:
        null = y == self.null_label
        return velocity(x_t, t, torch.where(null, 0.0, MEAN), torch.where(null, 0.0, torch.tensor(STD).log()))


class Student(nn.Module):
    """x0 = scale x_t + shift, of its own at each t of a list of four; it begins differently at each."""

    sample_shape, t_range, null_label, gradient_checkpointing = SHAPE, Gaussian.t_range, 1, False

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.scale = nn.Parameter(torch.linspace(1.0, 0.2, num_steps))
        self.shift = nn.Parameter(torch.linspace(-0.3, 0.9, num_steps))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        step = ((1 - t) * self.num_steps).round().long().clamp(0, self.num_steps - 1)
        x0 = t_like(self.scale[step], x_t) * x_t + t_like(self.shift[step], x_t)
        return (x_t - x0) / t_like(t, x_t)


def velocity(x_t: Tensor, t: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    t, mean, variance = (t_like(part, x_t) for part in (t, mean, (2 * log_std).exp()))
    gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
    return (x_t - mean - gain * (x_t - (1 - t) * mean)) / t


def gaussian_task(*overrides: str) -> DistillationTask:
    config = config_from_overrides(RunConfig, [*SETTINGS, *overrides])
    critic: Any = Gaussian(0.0, 1.0)
    settings = config.objective.fake_score
    if settings.knows_step and config.student.steps > 1:
        critic = StepAware(critic, config.student.steps)
    network = Network(critic, settings.optim, config.train.steps * settings.updates)
    models: Any = Models(Teacher(MEAN, STD), Student(config.student.steps), {"fake_score": network})  # pyright: ignore
    return DistillationTask(config, models, Accelerator(cpu=True), STD)


def final_moments(task: DistillationTask, num: int = 20_000) -> tuple[float, float]:
    """Mean and standard deviation of what the student's sampler gives."""
    sampler = few_step_sampler("student", task.student.module, task.t_list, task.config.student.ode_steps)
    noise = torch.randn(sampler.num_noises, num, *SHAPE, generator=generator_for(0, "judge"))
    samples = sampler.draw(noise, torch.zeros(num, dtype=torch.int64))
    return float(samples.mean()), float(samples.std())


def distilled(*overrides: str) -> tuple[float, float]:
    task = gaussian_task(*overrides)
    for step in range(task.config.train.steps):
        task.update(step)
    task.check()
    return final_moments(task)
