"""fake_score, the critic of distribution matching: a copy of the teacher that follows the student's samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.conditions import ConditionBatch
from distill.config import OptimConfig, TConfig
from distill.config.checks import at_least
from distill.models.backbone import Backbone
from distill.models.roles import trainable_copy
from distill.models.step_aware import StepAware, step_aware
from distill.objectives.base import Network, Samples, Setting, Turn
from distill.objectives.config import RunConfig
from distill.objectives.losses import flow_matching_errors, flow_matching_loss
from distill.objectives.monitor import ratios, sums_by_step
from distill.objectives.noising import t_and_eps
from distill.objectives.rollouts import ROLLOUTS
from distill.sampling import interpolate, velocity_to_x0
from distill.seeds import generator_for

ROLE = "fake_score"


@dataclass
class FakeScoreConfig:
    """updates: critic updates per student update; warmup_updates: critic-only updates at the start.

    knows_step: whether it is told which step of the student's list made its sample.
    t: of its flow matching.
    """

    updates: int = 5
    warmup_updates: int = 0
    knows_step: bool = True
    t: TConfig = field(default_factory=TConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, betas=(0.0, 0.95)))

    def __post_init__(self) -> None:
        at_least(self, "fake_score", 1, "updates")
        at_least(self, "fake_score", 0, "warmup_updates")


class FakeScore:
    """Flow matching of the critic on fresh student samples."""

    def __init__(self, setting: Setting, config: FakeScoreConfig) -> None:
        self.setting, self.config = setting, config
        self.learner = setting.networks[ROLE]
        self._teach = self.learner.on(partial(self._loss, self.learner.model), setting.config.train.accumulation)

    @staticmethod
    def network(config: RunConfig, critic: FakeScoreConfig, teacher: Backbone) -> Network:
        copy = trainable_copy(teacher, config.teacher, config.roles)
        if critic.knows_step:
            copy = step_aware(copy, config.student.steps, "objective.fake_score.knows_step")
        num_updates = critic.warmup_updates + config.train.steps * critic.updates
        return Network(cast(nn.Module, copy), critic.optim, num_updates, copies_teacher=True)

    @staticmethod
    def turn(config: RunConfig, critic: FakeScoreConfig) -> Turn:
        rows, before, finishing = ROLLOUTS[config.student.rollout].cost(config.train.batch_size, config.student.steps)
        told_step = critic.knows_step and config.student.steps > 1
        return Turn(ROLE, critic.updates, critic.warmup_updates, before + finishing, rows, 0, told_step)

    @torch.no_grad()
    def x0(self, x_t: Tensor, t: Tensor, samples: Samples) -> Tensor:
        """Its estimate of the clean sample, from samples noised to x_t; constant."""
        return velocity_to_x0(x_t, self.learner.module(x_t, t, samples.y, *self._told(samples.step)), t)

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        """Its updates before update number `step` of the student; in the first one those of the warm-up, too."""
        critic, values = self.config, {}
        first = critic.warmup_updates + step * critic.updates if step else 0
        last = critic.warmup_updates + (step + 1) * critic.updates
        for number in range(first, last):
            values |= self.update(number, step, with_lag=log_now and number == last - 1)
        return values

    def update(self, number: int, step: int, *, with_lag: bool) -> dict[str, Any]:
        """Update `number` of the critic. with_lag: its loss over the teacher's on the same samples, too."""
        setting = self.setting
        generator = generator_for(setting.config.train.seed, ROLE, number)
        inputs = setting.rollout.inputs(generator)
        num_rows = len(inputs.x_in) * setting.accelerator.num_processes
        t, eps = t_and_eps(setting, self.config.t, step, num_rows, generator)
        x0 = setting.rollout.finished(inputs)
        values, (errors,) = self._teach(number, x0, eps, t, inputs.y, *self._told(inputs.step))
        figures: dict[str, Any] = {f"{ROLE}/{name}": value for name, value in values.items()}
        if with_lag:
            with torch.no_grad():
                _, (of_teacher,) = self._loss(setting.teacher.model, x0, eps, t, inputs.y)
            num_steps = len(setting.t_list)
            sums = (sums_by_step(e, inputs.step, num_steps, setting.accelerator) for e in (errors, of_teacher))
            figures |= ratios(f"{ROLE}/lag", *sums)
        return figures

    def _told(self, step: Tensor) -> tuple[Tensor, ...]:
        """What it is given beside x_t, t and y."""
        return (step,) if isinstance(self.learner.module, StepAware) else ()

    def _loss(
        self, model: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, y: ConditionBatch, *told: Tensor
    ) -> tuple[Tensor, tuple[Tensor]]:
        """The flow-matching loss, and its part of each sample."""
        with self.setting.accelerator.autocast():
            velocity = model(interpolate(x0, eps, t), t, y, *told)
        return flow_matching_loss(velocity, x0, eps), (flow_matching_errors(velocity, x0, eps),)
