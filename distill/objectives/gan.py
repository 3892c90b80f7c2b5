"""An adversarial loss, arXiv:1406.2661: the student's samples, noised, are to pass for data, noised alike.

    loss = softplus(-D(x_t)),   x_t = (1 - t) x0_gen + t eps

Mixed with a distribution-matching objective (DMD2, arXiv:2405.14867; a weight of 3e-3 to 1e-2), it lets a student leave
its teacher's faults behind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.models.backbone import Backbone
from distill.objectives.base import Cost, Network, Objective, ObjectiveConfig, Samples, Setting, Turn, register
from distill.objectives.config import RunConfig
from distill.objectives.discriminator import ROLE, Discriminator, DiscriminatorConfig
from distill.objectives.dmd import sample_rows
from distill.objectives.noising import t_and_eps
from distill.sampling import interpolate


@dataclass
class GanConfig(ObjectiveConfig):
    """Its weight is that of an addition to another objective."""

    name: str = "gan"
    weight: float = 3e-3
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


@register("gan")
class Gan(Objective):
    """The student makes the discriminator take its samples for data."""

    title = "Adversarial distillation"
    Config = GanConfig
    needs_data = True
    on_samples = True
    headline: ClassVar = {"fake": f"{ROLE}/fake"}

    def __init__(self, setting: Setting, config: GanConfig) -> None:
        super().__init__(setting, config)
        self.discriminator = Discriminator(setting, config.discriminator)

    @classmethod
    def networks(cls, config: RunConfig, own: GanConfig, teacher: Backbone) -> dict[str, Network]:
        return {ROLE: Discriminator.network(config, own.discriminator, teacher)}

    @classmethod
    def turns(cls, config: RunConfig, own: GanConfig) -> list[Turn]:
        return [Discriminator.turn(config, own.discriminator)]

    @classmethod
    def cost(cls, config: RunConfig, own: GanConfig) -> Cost:
        return Cost(rows=int(own.discriminator.share * sample_rows(config)))  # through the features' network and back

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        return self.discriminator.teach(step)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        return t_and_eps(self.setting, self.config.discriminator.t, step, num_rows, generator)

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert samples is not None
        t, eps = batch
        logits = self.discriminator.logits(interpolate(samples.x0, eps, t), t, samples.y)
        return F.softplus(-logits).mean(), ()
