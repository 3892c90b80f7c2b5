"""The task of `run`: a student, its average, and the objective it learns by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import condition_of
from distill.config import RunConfig, StudentConfig
from distill.data import Dataset
from distill.errors import UserError
from distill.latents.decoding import PIXELS, Decoder
from distill.metrics import high_frequency_share
from distill.models import load_model
from distill.models.backbone import Backbone
from distill.models.ema import Ema, limited_decay
from distill.models.roles import load_teacher, trainable_copy
from distill.models.sharding import shard_frozen
from distill.objectives.base import Network, Setting
from distill.objectives.mixture import Mixture, networks_of, num_batches
from distill.objectives.rollouts import ROLLOUTS
from distill.render import clamp_images, save_grid
from distill.sampling import draw_images, few_step_sampler, grid_conditions, guided, t_grid
from distill.training.devices import launch_for
from distill.training.learner import Learner
from distill.training.loop import is_logged

GRID_ROWS = 8


@dataclass(frozen=True)
class Models:
    """The frozen teacher, the student, and what the objectives train beside it, by role.

    begins_alike: whether the student begins as a copy of the teacher.
    """

    teacher: Backbone
    student: Backbone
    networks: dict[str, Network]
    begins_alike: bool = True

    def to(self, device: torch.device) -> Models:
        """Move all of them, in place."""
        for model in (self.teacher, self.student, *(network.model for network in self.networks.values())):
            cast(nn.Module, model).to(device)
        return self

    @property
    def copies(self) -> dict[str, Backbone]:
        """Models that must compute what the teacher does before the first update, by role."""
        networks = {role: network.model for role, network in self.networks.items() if network.copies_teacher}
        return {**({"student": self.student} if self.begins_alike else {}), **cast(dict[str, Backbone], networks)}


def build_models(config: RunConfig) -> Models:
    """Load the teacher and make what learns of it. Adapters are drawn from torch's global generator.

    Raises: UserError where peft is needed and missing.
    """
    return models_from(load_teacher(config.teacher), config)


def models_from(teacher: Backbone, config: RunConfig) -> Models:
    """As `build_models`, of a teacher that is loaded; it is frozen."""
    start = config.student.start
    origin = teacher if start is None else started(start, teacher)
    student = trainable_copy(origin, config.teacher, config.roles)
    networks = networks_of(config, teacher)
    cast(nn.Module, teacher).eval().requires_grad_(False)
    return Models(teacher, student, networks, begins_alike=start is None)


def started(path: str, teacher: Backbone) -> Backbone:
    """The model that the student begins as. Raises: UserError where it is not of the teacher's kind."""
    model = load_model(path)
    for what, there, here in (
        ("samples", model.sample_shape, teacher.sample_shape),
        ("conditions", condition_of(model), condition_of(teacher)),
    ):
        if there != here:
            raise UserError(f"student.start = {path} has {what} {there}; the teacher has {here}")
    return model


def student_t_list(student: StudentConfig, t_range: tuple[float, float]) -> Tensor:
    """The student's timesteps, descending (S), within the range of t in which the model is defined."""
    if student.t_list is not None:
        return torch.tensor(student.t_list).clamp(*t_range)
    return t_grid(student.steps, student.shift, t_range)[:-1]


class DistillationTask:
    """One update is the objective's, then one step of the student's EMA."""

    def __init__(
        self,
        config: RunConfig,
        models: Models,
        accelerator: Accelerator,
        teacher_std: float,
        decoder: Decoder = PIXELS,
        data: Dataset | None = None,
    ) -> None:
        teacher = models.teacher
        self.config = config
        self.accelerator = accelerator
        self.decoder = decoder
        self.condition = condition_of(teacher)
        self.t_list = student_t_list(config.student, teacher.t_range).to(accelerator.device)
        launch = launch_for(config.train, accelerator)
        for model in (models.student, *models.copies.values()):
            model.gradient_checkpointing = config.train.gradient_checkpointing
        student = cast(nn.Module, models.student)
        self.student = Learner("student", student, config.student.optim, config.train.steps, accelerator, launch)
        networks = {
            role: Learner(role, network.model, network.optim, network.num_updates, accelerator, launch)
            for role, network in models.networks.items()
        }
        self.learners = [*networks.values(), self.student]
        frozen = shard_frozen(cast(nn.Module, teacher).to(accelerator.device), accelerator)
        decay = limited_decay(config.student.ema_decay, config.train.steps)
        self.ema = Ema(self.student.module, decay, self.student.meta_model)
        rollout = ROLLOUTS[config.student.rollout](
            config,
            accelerator,
            self.condition,
            teacher.sample_shape,
            self.t_list,
            self.student,
            num_batches(config),
        )
        setting = Setting(
            config=config,
            accelerator=accelerator,
            condition=self.condition,
            sample_shape=teacher.sample_shape,
            t_range=teacher.t_range,
            t_list=self.t_list,
            teacher=guided(frozen, self.condition, config.teacher),
            teacher_std=teacher_std,
            student=self.student,
            networks=networks,
            rollout=rollout,
            data=data,
        )
        self.objective = Mixture(setting)
        accelerator.register_for_checkpointing(self.ema, *self.objective.stateful())

    def check(self) -> None:
        for learner in self.learners:
            learner.check()

    def update(self, step: int) -> dict[str, Any]:
        values = self.objective.update(step, log_now=is_logged(step + 1, self.config.train))
        self.ema.update(self.student.module)
        return values

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """The EMA student's samples from fixed noise, as a picture and by their high frequencies."""
        averaged = self.averaged_student
        if not self.accelerator.is_main_process:
            return {}
        y = grid_conditions(self.condition, GRID_ROWS)
        sampler = few_step_sampler("student", averaged, self.t_list, self.config.student.ode_steps)
        size = self.config.evaluate.batch_size
        with self.accelerator.autocast():
            images, _ = draw_images(sampler, y, seed=0, batch_size=size, decoder=self.decoder)
        save_grid(images, GRID_ROWS, folder / f"step_{step:08d}.png")
        return {"high_frequency_ratio": high_frequency_share(clamp_images(images))}

    @property
    def averaged_student(self) -> Backbone:
        """The EMA, which is what is saved and measured; all processes have to ask for it."""
        return cast(Backbone, self.ema.module)

    def headline(self, values: dict[str, float]) -> str:
        names = {**self.objective.headline, "hf": "high_frequency_ratio"}
        figures = {short: values[name] for short, name in names.items() if name in values}
        return "  ".join(f"{short} {value:.3f}" for short, value in figures.items())
