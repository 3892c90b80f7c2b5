"""Distribution matching distillation, data-free (DMD2, arXiv:2405.14867).

One update = `fake_score.updates` updates of fake_score, the critic, then one of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from distill.conditions import ConditionBatch
from distill.config import OptimConfig, RunConfig
from distill.config.checks import at_least, one_of
from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.models.roles import trainable_copy
from distill.objectives.base import Network, Setting, Turn, register
from distill.objectives.losses import dmd_loss, flow_matching_loss
from distill.objectives.monitor import GapByTime, spread
from distill.objectives.rollouts import ROLLOUTS, StudentInputs, finished, student_of
from distill.sampling import T_SAMPLERS, interpolate, uniform_t, velocity_to_x0
from distill.seeds import generator_for
from distill.training.batches import rank_slice

DrawT = Callable[[int, torch.Generator], Tensor]


@dataclass
class FakeScoreConfig:
    """updates: critic updates per student update; warmup_updates: critic-only updates at the start."""

    updates: int = 5
    warmup_updates: int = 0
    t_sampler: str = "uniform"
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=3e-4, betas=(0.0, 0.95)))

    def __post_init__(self) -> None:
        at_least(self, "fake_score", 1, "updates")
        at_least(self, "fake_score", 0, "warmup_updates")
        one_of(self, "fake_score", "t_sampler", ("uniform", "logit_normal"))


@dataclass
class DmdConfig:
    """t of the distribution-matching loss is drawn uniformly from [t_min, t_max], per sample.

    rollout: `random_step` takes the loss at one step of the student's list, the same for the whole batch;
        `every_step` at all of them, train.batch_size then counting trajectories (small models: more
        gradient per rollout); `shared` at steps drawn row by row, out of one rollout for the whole update, which
        takes fewer evaluations.
    """

    name: str = "dmd"
    t_min: float = 0.02
    t_max: float = 0.98
    rollout: str = "random_step"
    fake_score: FakeScoreConfig = field(default_factory=FakeScoreConfig)

    def __post_init__(self) -> None:
        one_of(self, "objective", "rollout", ("random_step", "every_step", "shared"))
        if not 0 <= self.t_min < self.t_max <= 1:
            raise UserError(f"objective needs 0 <= t_min < t_max <= 1; got t_min {self.t_min:g}, t_max {self.t_max:g}")


def settings_of(config: RunConfig) -> DmdConfig:
    """The section `objective` of a run whose objective is `dmd`."""
    return cast(DmdConfig, config.objective)


@register("dmd")
class Dmd:
    """A critic, fake_score, follows the student's samples; the student moves by teacher minus critic."""

    title = "Distribution matching distillation"
    Config = DmdConfig
    needs_data = False
    headline: ClassVar = {
        "critic": "fake_score/loss",
        "lag": "fake_score/lag",
        "gap": "x0_gap",
        "std": "std_drift",
    }

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.config = settings_of(setting.config)
        self.loop = setting.config.train
        self.accelerator = setting.accelerator
        self.teacher = setting.teacher
        self.student, self.fake_score = setting.student, setting.networks["fake_score"]
        accumulation = self.loop.accumulation
        self._teach_critic = self.fake_score.on(partial(self._critic_loss, self.fake_score.model), accumulation)
        self._teach_student = self.student.on(self._student_loss, accumulation)
        self.gap = GapByTime(setting.accelerator)
        self.rollout = ROLLOUTS[self.config.rollout](setting, self.config.fake_score.updates + 1)

    @classmethod
    def networks(cls, config: RunConfig, teacher: Backbone) -> dict[str, Network]:
        critic = settings_of(config).fake_score
        num_updates = critic.warmup_updates + config.train.steps * critic.updates
        copy = trainable_copy(teacher, config.teacher, config.roles)
        return {"fake_score": Network(cast(nn.Module, copy), critic.optim, num_updates, copies_teacher=True)}

    @classmethod
    def turns(cls, config: RunConfig) -> list[Turn]:
        settings, batch, steps = settings_of(config), config.train.batch_size, config.student.steps
        # Rows of a batch, and passes that its rollout takes before the student is asked to finish them.
        rows, rolled_out = {
            "random_step": (batch, batch * (steps - 1) / 2),
            "every_step": (batch * steps, batch * (steps - 1)),
            "shared": (batch, batch),
        }[settings.rollout]
        finishing = 0 if settings.rollout == "shared" else batch
        guided = 2 if config.teacher.cfg_scale != 1 else 1
        critic = settings.fake_score
        return [
            Turn("fake_score", critic.updates, critic.warmup_updates, rolled_out + finishing, rows, 0),
            Turn("student", 1, 0, rolled_out + (guided + 1) * rows, rows, guided),
        ]

    def stateful(self) -> list[GapByTime]:
        return [self.gap]

    def update(self, step: int, *, log_now: bool) -> dict[str, Any]:
        self.rollout.begin(step)
        critic = self.config.fake_score
        first = critic.warmup_updates + step * critic.updates if step else 0
        last = critic.warmup_updates + (step + 1) * critic.updates
        values: dict[str, Any] = {}
        for critic_step in range(first, last):
            values |= self._update_critic(critic_step, with_lag=log_now and critic_step == last - 1)
        values |= self._update_student(step)
        return values | (self.gap.take() if log_now else {})

    def _update_critic(self, step: int, *, with_lag: bool) -> dict[str, Tensor]:
        """Flow matching of fake_score on fresh student samples, t over the whole range."""
        inputs, t, eps = self._draw("fake_score", step, T_SAMPLERS[self.config.fake_score.t_sampler])
        with self.accelerator.autocast():
            x0 = finished(student_of(self.setting), inputs)
        values, _ = self._teach_critic(step, x0, eps, t, inputs.y)
        if with_lag:
            with torch.no_grad():
                loss, _ = self._critic_loss(self.teacher.model, x0, eps, t, inputs.y)
                on_teacher = self.accelerator.reduce(loss, reduction="mean")
            assert isinstance(on_teacher, Tensor)
            values["lag"] = values["loss"] / on_teacher
        return {f"fake_score/{name}": value for name, value in values.items()}

    def _critic_loss(
        self, model: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, y: ConditionBatch
    ) -> tuple[Tensor, tuple[()]]:
        with self.accelerator.autocast():
            velocity = model(interpolate(x0, eps, t), t, y)
        return flow_matching_loss(velocity, x0, eps), ()

    def _update_student(self, step: int) -> dict[str, Tensor]:
        inputs, t, eps = self._draw("student", step, partial(uniform_t, low=self.config.t_min, high=self.config.t_max))
        values, rows = self._teach_student(step, inputs.x_in, inputs.t_in, t, eps, inputs.y)
        x0_gen, x0_fake, x0_teacher = rows
        self.gap.add(t, x0_fake, x0_teacher)
        drift = spread(x0_gen, self.accelerator) / self.setting.teacher_std - 1
        return {**{f"student/{name}": value for name, value in values.items()}, "std_drift": drift}

    def _student_loss(
        self, x_in: Tensor, t_in: Tensor, t: Tensor, eps: Tensor, y: ConditionBatch
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The distribution-matching loss from noised x0_gen, with gradient through x0_gen alone; the three x0."""
        with self.accelerator.autocast():
            x0_gen = velocity_to_x0(x_in, self.student.model(x_in, t_in, y), t_in)
            with torch.no_grad():
                x_t = interpolate(x0_gen, eps, t)
                x0_teacher = self.teacher.x0(x_t, t, y)
                x0_fake = velocity_to_x0(x_t, self.fake_score.module(x_t, t, y), t)
        return dmd_loss(x0_gen, x0_teacher, x0_fake), (x0_gen.detach(), x0_fake, x0_teacher)

    def _draw(self, role: str, step: int, draw_t: DrawT) -> tuple[StudentInputs, Tensor, Tensor]:
        """One update's student inputs, and t, eps to noise what comes out of them.

        All random numbers are drawn alike on every process, which keeps its share of the trajectories.
        """
        setting, size = self.setting, self.loop.batch_size
        generator = generator_for(self.loop.seed, role, step)
        inputs = self.rollout.inputs(generator)
        per_trajectory = len(inputs.x_in) * self.accelerator.num_processes // size
        t = draw_t(per_trajectory * size, generator).clamp(*setting.t_range).view(per_trajectory, size)
        eps = torch.randn(per_trajectory, size, *setting.sample_shape, generator=generator)
        t, eps = (rank_slice(part, self.accelerator, dim=1).flatten(0, 1) for part in (t, eps))
        return inputs, t, eps
