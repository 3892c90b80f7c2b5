"""Regression on pairs of the teacher, as the first DMD had it, arXiv:2311.18828 eq. 9.

    loss = d(x0_gen, x0),   x0_gen = student.x0(t_1 noise, t_1),   x0 where the teacher's ODE takes the same noise

It holds the student to the teacher's pairing of noise and picture, and so to its variety. Of a student in several steps
it teaches the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.assets import EMBEDDED
from distill.conditions import ConditionBatch, to_device
from distill.config.checks import at_least, one_of
from distill.data.base import shuffled_indices
from distill.data.pairs import Pairs, read_index, weights_hash
from distill.errors import UserError
from distill.metrics.features import load_extractor
from distill.metrics.perceptual import PerceptualDistance, load_perceptual
from distill.models.backbone import Backbone
from distill.objectives.base import Cost, Network, Objective, ObjectiveConfig, Samples, Setting, register
from distill.objectives.config import RunConfig
from distill.progress import logger
from distill.sampling import noise_for, velocity_to_x0
from distill.training.batches import local_rows

HUBER_DELTA = 0.1


@dataclass
class RegressionConfig(ObjectiveConfig):
    """pairs: a folder that `scripts/make_pairs.py` made.

    distance: `huber`, `mse`, or `lpips` (of images; needs AlexNet's weights). batch_size: pairs in an update; null for
        train.batch_size.
    """

    name: str = "regression"
    pairs: str = ""
    distance: str = "huber"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "objective", "distance", ("huber", "mse", "lpips"))
        at_least(self, "objective", 1, *(["batch_size"] if self.batch_size is not None else []))
        if not self.pairs:
            raise UserError("objective.pairs must name a folder of pairs; scripts/make_pairs.py makes one")


@register("regression")
class Regression(Objective):
    """The student's first step takes a noise where the teacher's ODE takes it."""

    title = "Regression on the teacher's pairs"
    Config = RegressionConfig

    def __init__(self, setting: Setting, config: RegressionConfig) -> None:
        super().__init__(setting, config)
        self.pairs = Pairs(config.pairs)
        self.num_rows = config.batch_size or setting.config.train.batch_size
        share = setting.accelerator.num_processes * setting.config.train.accumulation
        if self.num_rows % share:
            raise UserError(f"regression's batch_size must be a multiple of processes x accumulation = {share}")
        if self.num_rows > len(self.pairs):
            raise UserError(f"{config.pairs} holds {len(self.pairs)} pairs; an update takes {self.num_rows}")
        self.distance = distance_of(config.distance, setting)

    @classmethod
    def networks(cls, config: RunConfig, own: RegressionConfig, teacher: Backbone) -> dict[str, Network]:
        """Raises: UserError where the pairs are of another teacher."""
        if not next(teacher.parameters()).is_meta:
            check_pairs(Path(own.pairs).expanduser(), teacher, config)
        return {}

    @classmethod
    def cost(cls, config: RunConfig, own: RegressionConfig) -> Cost:
        return Cost(rows=own.batch_size or config.train.batch_size)

    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        setting = self.setting
        seed, device = setting.config.train.seed, setting.accelerator.device
        indices = local_rows(shuffled_indices(len(self.pairs), self.num_rows, step, seed), setting.accelerator)
        x0, y = self.pairs.rows(indices)
        noise = noise_for(indices.tolist(), 1, setting.sample_shape, self.pairs.index["seed"])[0]
        return to_device(noise, device), to_device(x0, device), to_device(y, device)

    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        noise, x0, y = batch
        t = self.setting.t_list[0].to(noise)
        x_in, t_in = t * noise, t.expand(len(noise))
        x0_gen = velocity_to_x0(x_in, self.setting.student.model(x_in, t_in, y), t_in)
        return self.distance(x0_gen.float(), x0), ()


def check_pairs(folder: Path, teacher: Backbone, config: RunConfig) -> None:
    """See that pairs are of this teacher with this guidance. Raises: UserError."""
    index, settings = read_index(folder), config.teacher
    if index["teacher"] != weights_hash(teacher):
        raise UserError(f"{folder} holds pairs of another teacher than teacher.path = {settings.path}")
    if index["cfg_scale"] != settings.cfg_scale:
        raise UserError(
            f"{folder} was drawn at cfg_scale {index['cfg_scale']:g}; teacher.cfg_scale is {settings.cfg_scale:g}"
        )


def distance_of(name: str, setting: Setting) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean distance of two batches by its name. Raises: UserError where LPIPS cannot be had."""
    if name == "huber":
        return lambda a, b: F.huber_loss(a, b, delta=HUBER_DELTA)
    if name == "mse":
        return F.mse_loss
    if setting.sample_shape[0] not in (1, 3):
        raise UserError(f"distance = lpips is of images; the samples have {setting.sample_shape[0]} channels")
    device = setting.accelerator.device
    shipped = load_extractor(EMBEDDED, device=device) if setting.config.teacher.path == EMBEDDED else None
    try:
        perceptual = load_perceptual(setting.sample_shape, shipped, device=device)
    except FileNotFoundError as error:
        raise UserError(f"distance = lpips: {error}") from error
    logger.info(f"regression by {perceptual.name}")
    return lambda a, b: cast(PerceptualDistance, perceptual).losses(a, b).mean()
