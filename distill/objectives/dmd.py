"""Distribution matching distillation, data-free (DMD2, arXiv:2405.14867)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.config import TConfig
from distill.config.checks import at_least, within
from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.models.part_way import PartWay
from distill.objectives.base import Cost, Network, Objective, ObjectiveConfig, Samples, Setting, Turn, register
from distill.objectives.config import RunConfig
from distill.objectives.critic import ROLE, FakeScore, FakeScoreConfig
from distill.objectives.losses import dmd_loss
from distill.objectives.monitor import Monitor
from distill.objectives.noising import t_and_eps
from distill.objectives.rollouts import ROLLOUTS
from distill.sampling import guided, interpolate


@dataclass
class DmdConfig(ObjectiveConfig):
    """t: of the distribution-matching loss, drawn for each sample.

    critic_share, critic_share_until: at first the teacher of this loss carries so much of the critic's adapters, by a
        cosine down to nothing at that update (DynaDG, arXiv:2511.13649); with LoRA roles.
    """

    name: str = "dmd"
    t: TConfig = field(default_factory=lambda: TConfig(low=0.02, high=0.98))
    critic_share: float = 0.0
    critic_share_until: int = 10_000
    fake_score: FakeScoreConfig = field(default_factory=FakeScoreConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        within(self, "objective", 0, 1, "critic_share")
        at_least(self, "objective", 1, "critic_share_until")


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
        self.between: PartWay | None = None
        if config.critic_share:
            if setting.accelerator.is_fsdp2:
                raise UserError(f"FSDP: objective.critic_share must be 0; got {config.critic_share:g}")
            self.between = PartWay(self.fake_score.learner.module)
            self.teacher = guided(self.between, setting.condition, setting.config.teacher)
        self.monitor = Monitor(setting.accelerator, len(setting.t_list), setting.teacher_std)

    @classmethod
    def networks(cls, config: RunConfig, own: Any, teacher: Backbone) -> dict[str, Network]:
        if own.critic_share and config.roles.trainable != "lora":
            raise UserError(
                f"objective.critic_share = {own.critic_share:g} needs roles.trainable = lora; "
                f"got {config.roles.trainable}"
            )
        return {ROLE: FakeScore.network(config, own.fake_score, teacher)}

    @classmethod
    def turns(cls, config: RunConfig, own: Any) -> list[Turn]:
        return [FakeScore.turn(config, own.fake_score)]

    @classmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        passes = config.teacher.passes
        return Cost(passes=(passes + 1) * sample_rows(config), teacher_passes=passes)

    def stateful(self) -> list[Any]:
        return [self.monitor]

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        if self.between:
            fallen = min(step / self.config.critic_share_until, 1)
            self.between.go(self.config.critic_share * (1 + math.cos(math.pi * fallen)) / 2)
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
