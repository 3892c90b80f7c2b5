"""Distribution matching distillation, data-free (DMD2, arXiv:2405.14867)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.config import RunConfig, TConfig
from distill.models.backbone import Backbone
from distill.objectives.base import Cost, Network, Objective, ObjectiveConfig, Samples, Setting, Turn, register
from distill.objectives.critic import ROLE, FakeScore, FakeScoreConfig
from distill.objectives.losses import dmd_loss
from distill.objectives.monitor import Monitor
from distill.objectives.noising import t_and_eps
from distill.objectives.rollouts import ROLLOUTS
from distill.sampling import interpolate


@dataclass
class DmdConfig(ObjectiveConfig):
    """t: of the distribution-matching loss, drawn for each sample."""

    name: str = "dmd"
    t: TConfig = field(default_factory=lambda: TConfig(low=0.02, high=0.98))
    fake_score: FakeScoreConfig = field(default_factory=FakeScoreConfig)


@register("dmd")
class Dmd(Objective):
    """A critic, fake_score, follows the student's samples; the student moves by teacher minus critic."""

    title = "Distribution matching distillation"
    Config = DmdConfig
    on_samples = True
    headline: ClassVar = {
        "critic": f"{ROLE}/loss",
        "lag": f"{ROLE}/lag",
        "gap": "x0_gap",
        "std": "std_drift",
    }

    def __init__(self, setting: Setting, config: Any) -> None:
        super().__init__(setting, config)
        self.teacher = setting.teacher
        self.fake_score = FakeScore(setting, config.fake_score)
        self.monitor = Monitor(setting.accelerator, len(setting.t_list), setting.teacher_std)

    @classmethod
    def networks(cls, config: RunConfig, own: Any, teacher: Backbone) -> dict[str, Network]:
        return {ROLE: FakeScore.network(config, own.fake_score, teacher)}

    @classmethod
    def turns(cls, config: RunConfig, own: Any) -> list[Turn]:
        return [FakeScore.turn(config, own.fake_score)]

    @classmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        guided = 2 if config.teacher.cfg_scale != 1 else 1
        return Cost(passes=(guided + 1) * sample_rows(config), teacher_passes=guided)

    def stateful(self) -> list[Any]:
        return [self.monitor]

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        return self.fake_score.teach(step, log_now=log_now)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        return t_and_eps(self.setting, self.config.t, step, num_rows, generator)

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The distribution-matching loss from noised x0_gen, with gradient through x0_gen alone."""
        assert samples is not None
        x0_teacher, x0_fake, t = self.estimates(samples, *batch)
        weights = self.weights(samples, t, *batch)
        rows = t, samples.step, samples.x0.detach(), x0_fake, x0_teacher
        return dmd_loss(samples.x0, x0_teacher, x0_fake, weights), rows

    def figures(self, rows: Sequence[Tensor], *, log_now: bool) -> dict[str, Any]:
        self.monitor.add(*rows[:5])
        return self.monitor.take() if log_now else {}

    @torch.no_grad()
    def estimates(self, samples: Samples, *batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """x0 by the guided teacher and by the critic, from samples noised to t, and t."""
        t, eps = batch[:2]
        x_t = interpolate(samples.x0, eps, t)
        return self.teacher.x0(x_t, t, samples.y), self.fake_score.x0(x_t, t, samples), t

    def weights(self, samples: Samples, t: Tensor, *batch: Any) -> Tensor | None:
        """What each sample counts, (K); None for alike."""
        return None


def sample_rows(config: RunConfig) -> int:
    """Rows of the student's samples in an update, over all processes."""
    rows, _, _ = ROLLOUTS[config.student.rollout].cost(config.train.batch_size, config.student.steps)
    return rows
