"""Flow matching of the student on data, arXiv:2210.02747: supervised fine-tuning of a few-step student.

    loss = |student(x_t, t, y) - (eps - x0)|^2,   x_t = (1 - t) x0 + t eps,   by default at the student's own t

Alone it makes samples of few steps smooth, for the mean of all data behind x_t is what it asks for; mixed into another
objective with a small weight it draws a student to data that its teacher has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.config import TConfig
from distill.objectives.base import Cost, Objective, ObjectiveConfig, Samples, Setting, register
from distill.objectives.config import RunConfig
from distill.objectives.data_rows import data_rows
from distill.objectives.losses import flow_matching_loss
from distill.objectives.noising import t_and_eps
from distill.sampling import interpolate


@dataclass
class StudentFlowMatchingConfig(ObjectiveConfig):
    """t: where the student is asked."""

    name: str = "flow_matching"
    t: TConfig = field(default_factory=lambda: TConfig(sampler="student_list"))


@register("flow_matching")
class FlowMatching(Objective):
    """The student learns from data, as a teacher does, but where its sampler asks it."""

    title = "Flow matching on data"
    Config = StudentFlowMatchingConfig
    needs_data = True

    def __init__(self, setting: Setting, config: StudentFlowMatchingConfig) -> None:
        super().__init__(setting, config)

    @classmethod
    def cost(cls, config: RunConfig, own: StudentFlowMatchingConfig) -> Cost:
        return Cost(rows=config.train.batch_size)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        size = self.setting.config.train.batch_size
        t, eps = t_and_eps(self.setting, self.config.t, step, size, generator)
        x0, y = data_rows(self.setting, step, size, generator)
        return x0, eps, t, y

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0, eps, t, y = batch
        return flow_matching_loss(self.setting.student.model(interpolate(x0, eps, t), t, y), x0, eps), ()
