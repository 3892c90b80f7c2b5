"""Decoupled DMD, arXiv:2511.22677: guidance drives the student, distribution matching keeps it in place.

    x0_fake - [x0_uncond + w (x0_cond - x0_uncond)]  =  (x0_fake - x0_cond) - (w - 1) (x0_cond - x0_uncond)

The first part is taken at a t of its own from the whole range, the second at t of at most the one that the sample was
made from: what guidance says of coarser structure than the step could still change is left out. The schedule is the
authors' (Z-Image's tracker, 74 and 78).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.config import TConfig
from distill.config.checks import at_least
from distill.objectives.base import Cost, Samples, register
from distill.objectives.config import RunConfig
from distill.objectives.critic import FakeScoreConfig
from distill.objectives.dmd import Dmd, DmdConfig, sample_rows
from distill.objectives.noising import t_and_eps
from distill.sampling import interpolate, shift_t, unshift_t

SHIFT = 3.0  # the authors', of student, teacher and critic alike


def shifted() -> TConfig:
    return TConfig(sampler="shifted", shift=SHIFT)


@dataclass
class DecoupledDmdConfig(DmdConfig):
    """As `dmd`; t: of the distribution matching.

    guidance_shift: t of the guidance is shift(u), u ~ U[0, unshift(t_in)], of a sample that was made at t_in.
    """

    name: str = "decoupled_dmd"
    t: TConfig = field(default_factory=shifted)
    guidance_shift: float = SHIFT
    fake_score: FakeScoreConfig = field(default_factory=lambda: FakeScoreConfig(t=shifted()))

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, "objective", 1e-3, "guidance_shift")


@register("decoupled_dmd")
class DecoupledDmd(Dmd):
    """Distribution matching without guidance, and the guidance by itself."""

    title = "Decoupled distribution matching"
    Config = DecoupledDmdConfig

    @classmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        plain = super().cost(config, own)
        more = sample_rows(config) if config.teacher.cfg_scale != 1 else 0  # the guidance is asked for by itself
        return replace(plain, passes=plain.passes + more)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        t, eps = t_and_eps(self.setting, self.config.t, step, num_rows, generator)
        u, eps_guided = t_and_eps(self.setting, TConfig(), step, num_rows, generator)
        return t, eps, u, eps_guided

    @torch.no_grad()
    def estimates(self, samples: Samples, *batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """x0 by teacher and critic at t; the teacher's has the guidance at a t of its own."""
        t, eps, u, eps_guided = batch
        x_t = interpolate(samples.x0, eps, t)
        x0_teacher = self.teacher.unguided_x0(x_t, t, samples.y)
        if self.teacher.cfg_scale != 1.0:
            t_guided = self.guided_t(u, samples.step)
            x_guided = interpolate(samples.x0, eps_guided, t_guided)
            x0_teacher = x0_teacher + self.teacher.guidance(x_guided, t_guided, samples.y)
        return x0_teacher, self.fake_score.x0(x_t, t, samples), t

    def guided_t(self, u: Tensor, step: Tensor) -> Tensor:
        """t of the guidance, at most that of the step that made the sample."""
        t_in = self.setting.t_list.to(u)[step]
        shift = self.config.guidance_shift
        return shift_t(u * unshift_t(t_in, shift), shift).clamp(*self.setting.t_range)
