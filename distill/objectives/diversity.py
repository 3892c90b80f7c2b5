"""Diversity-preserving DMD: the first step learns where the teacher's ODE goes, the later ones match distributions.

    v_mean = (x_{t_2} - x_{t_1}) / (t_2 - t_1) along the teacher's guided ODE from x_{t_1} = noise,
    loss = |student(x_{t_1}, t_1, y) - v_mean|^2 of the first step, the distribution-matching loss of the others

What a picture shows is decided at high noise, where distribution matching drops modes; there the student follows the
teacher instead. Its sampler must then take the first step along the ODE: `student.ode_steps` >= 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.config.checks import at_least
from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.objectives.base import Cost, Network, Samples, Setting, register
from distill.objectives.config import RunConfig
from distill.objectives.dmd import Dmd, DmdConfig
from distill.sampling import euler
from distill.training.batches import rank_slice


@dataclass
class DiversityConfig(DmdConfig):
    """As `dmd`. first_weight: of the first step's loss. teacher_steps: Euler steps of the teacher over that step."""

    name: str = "diversity"
    first_weight: float = 1.0
    teacher_steps: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "objective", 0, "first_weight")
        at_least(self, "objective", 1, "teacher_steps")


@register("diversity")
class Diversity(Dmd):
    """The first step by the teacher's average velocity, the others by distribution matching."""

    title = "Diversity-preserving distribution matching"
    Config = DiversityConfig

    def __init__(self, setting: Setting, config: DiversityConfig) -> None:
        super().__init__(setting, config)
        self.first_and_second = setting.t_list[:2].tolist()

    @classmethod
    def networks(cls, config: RunConfig, own: Any, teacher: Backbone) -> dict[str, Network]:
        student = config.student
        if student.steps < 2 or student.ode_steps < 1:
            raise UserError(
                "objective.name = diversity needs student.steps of at least 2 and student.ode_steps of at least 1; got "
                f"{student.steps} and {student.ode_steps}"
            )
        return super().networks(config, own, teacher)

    @classmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        plain = super().cost(config, own)
        size = config.train.batch_size
        return Cost(plain.passes + config.teacher.passes * own.teacher_steps * size, size, plain.teacher_passes)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        setting, size = self.setting, self.setting.config.train.batch_size
        matching = super().batch(step, num_rows, generator)
        y = rank_slice(setting.condition.random(size, generator), setting.accelerator)
        noise = torch.randn(size, *setting.sample_shape, generator=generator)
        noise = rank_slice(noise, setting.accelerator)
        return *matching, noise, self.average_velocity(noise, y), y

    @torch.no_grad()
    def average_velocity(self, noise: Tensor, y: ConditionBatch) -> Tensor:
        """Of the teacher's guided ODE from the student's first t to its second."""
        first, second = self.first_and_second
        grid = torch.linspace(first, second, self.config.teacher_steps + 1)
        x = first * noise
        with self.setting.accelerator.autocast():
            return (euler(self.setting.teacher.velocity_field(y), x, grid) - x) / (second - first)

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        *matching, noise, target, y = batch
        loss, rows = super().loss(samples, *matching)
        t = self.setting.t_list[0].to(noise)
        velocity = self.setting.student.model(t * noise, t.expand(len(noise)), y)
        return loss + self.config.first_weight * F.mse_loss(velocity.float(), target), rows

    def weights(self, samples: Samples, t: Tensor, *batch: Any) -> Tensor | None:
        return (samples.step > 0).float()
