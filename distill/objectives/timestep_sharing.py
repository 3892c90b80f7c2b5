"""Timestep sharing, of SD3.5-Flash, arXiv:2509.21318: teacher and critic are asked at the student's own timesteps."""

from __future__ import annotations

from dataclasses import dataclass, field

from distill.config import TConfig
from distill.objectives.base import register
from distill.objectives.dmd import Dmd, DmdConfig


@dataclass
class TimestepSharingConfig(DmdConfig):
    """As `dmd`, but for t."""

    name: str = "timestep_sharing"
    t: TConfig = field(default_factory=lambda: TConfig(sampler="student_list"))


@register("timestep_sharing")
class TimestepSharing(Dmd):
    """Distribution matching at the noise levels that the student's sampler passes, in place of fresh ones."""

    title = "Distribution matching at shared timesteps"
    Config = TimestepSharingConfig
