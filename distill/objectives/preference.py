"""Preferences over pairs of pictures: Diffusion-DPO, arXiv:2311.12908 eq. 14, for a few-step student.

    loss = -ln sigmoid(-beta / 2 [(e_w - e_w^ref) - (e_l - e_l^ref)]),   e = mean |velocity - (eps - x0)|^2

of the preferred picture w and the rejected one l, noised alike to the student's own timesteps; ref is the student as it
was before. Higher beta keeps it nearer to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.conditions import ConditionBatch
from distill.config import DataConfig, TConfig
from distill.config.checks import at_least
from distill.data.checking import check_fits
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.models.parameters import copy_sharing, frozen_parameters
from distill.objectives.base import Cost, Objective, ObjectiveConfig, Samples, Setting, register
from distill.objectives.config import RunConfig
from distill.objectives.data_rows import data_rows
from distill.objectives.noising import t_and_eps
from distill.sampling import interpolate


@dataclass
class PreferenceConfig(ObjectiveConfig):
    """preferred, rejected: data sets of as many pictures; picture i of one was chosen over picture i of the other.

    beta: how much the student is held to what it was. t: where both are asked.
    """

    name: str = "preference"
    beta: float = 2000.0
    preferred: DataConfig | None = None
    rejected: DataConfig | None = None
    t: TConfig = field(default_factory=lambda: TConfig(sampler="student_list"))

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "objective", 0, "beta")
        for name in ("preferred", "rejected"):
            if getattr(self, name) is None:
                raise UserError(f"objective.{name} must be a section with name and path of pictures")


@register("preference")
class Preference(Objective):
    """The student comes to explain preferred pictures better than rejected ones, against what it was."""

    title = "Preference tuning"
    Config = PreferenceConfig
    headline: ClassVar = {"loss": "student/loss", "margin": "margin"}

    def __init__(self, setting: Setting, config: PreferenceConfig) -> None:
        super().__init__(setting, config)
        if setting.accelerator.is_fsdp2:
            raise UserError("FSDP: the objective preference keeps a whole copy of the student; take DDP")
        student: nn.Module = setting.student.module
        self.reference = copy_sharing(student, frozen_parameters(student).values()).eval().requires_grad_(False)
        assert config.preferred is not None and config.rejected is not None
        self.preferred, self.rejected = configured_dataset(config.preferred), configured_dataset(config.rejected)
        if len(self.preferred) != len(self.rejected) or not torch.equal(self.preferred.labels, self.rejected.labels):
            raise UserError(
                f"preferred and rejected must be pairs; they have {len(self.preferred)} and {len(self.rejected)} "
                "pictures, or other classes in another order"
            )
        for data, section in ((self.preferred, config.preferred), (self.rejected, config.rejected)):
            check_fits(data, setting.sample_shape, setting.condition, section.path)

    @classmethod
    def cost(cls, config: RunConfig, own: PreferenceConfig) -> Cost:
        return Cost(passes=2 * config.train.batch_size, rows=2 * config.train.batch_size, teacher_passes=1, copies=1)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        size = self.setting.config.train.batch_size
        t, eps = t_and_eps(self.setting, self.config.t, step, size, generator)
        x0_w, y = data_rows(self.setting, step, size, generator, self.preferred)
        x0_l, _ = data_rows(self.setting, step, size, generator, self.rejected)
        return x0_w, x0_l, eps, t, y

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        x0_w, x0_l, eps, t, y = batch
        student, reference = self.setting.student.model, self.reference
        gains = []
        for x0 in (x0_w, x0_l):
            x_t = interpolate(x0, eps, t)
            with torch.no_grad():
                before = errors(reference(x_t, t, y), x0, eps)
            gains.append(before - errors(student(x_t, t, y), x0, eps))
        margin = gains[0] - gains[1]
        return -F.logsigmoid(self.config.beta / 2 * margin).mean(), ((margin > 0).float().detach(),)

    def figures(self, rows: Sequence[Tensor], *, log_now: bool) -> dict[str, Any]:
        """margin: the share of pairs that the student tells better apart than it did."""
        return {"margin": rows[0].mean()}


def errors(velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """mean |velocity - (eps - x0)|^2 of each sample, (B), with gradient."""
    return (velocity.float() - (eps - x0).float()).square().flatten(1).mean(1)
