"""The task of `run`: a student, its average, and the objective it learns by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import condition_of
from distill.config import StudentConfig
from distill.data import Dataset
from distill.errors import UserError
from distill.latents.decoding import PIXELS, Decoder
from distill.models import load_model
from distill.models.backbone import Backbone
from distill.models.ema import Ema, limited_decay
from distill.models.parameters import move_together
from distill.models.roles import load_teacher, trainable_copy
from distill.models.sharding import shard_frozen
from distill.objectives.base import Network, Setting
from distill.objectives.config import RunConfig
from distill.objectives.critic import ROLE as FAKE_SCORE
from distill.objectives.mixture import Mixture, networks_of, num_batches
from distill.objectives.rollouts import ROLLOUTS
from distill.objectives.watching import OnLook, Watcher
from distill.sampling import guided, t_grid
from distill.training.devices import launch_for
from distill.training.learner import Learner
from distill.training.loop import is_due, is_logged

LAG = f"{FAKE_SCORE}/lag"


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
        networks = (network.model for network in self.networks.values())
        move_together((cast(nn.Module, model) for model in (self.teacher, self.student, *networks)), device)
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
    teacher = load_teacher(config.teacher)
    if config.roles.trainable == "all":  # what learns, and what it begins as, is held in full precision
        cast(nn.Module, teacher).float()
    return models_from(teacher, config)


def models_from(teacher: Backbone, config: RunConfig) -> Models:
    """As `build_models`, of a teacher that is loaded; it is frozen."""
    start = config.student.start
    origin = teacher if start is None else started(start, teacher, config.teacher.prompts)
    student = trainable_copy(origin, config.teacher, config.roles)
    networks = networks_of(config, teacher)
    cast(nn.Module, teacher).eval().requires_grad_(False)
    return Models(teacher, student, networks, begins_alike=start is None)


def started(path: str, teacher: Backbone, prompts: str | None) -> Backbone:
    """The model that the student begins as. Raises: UserError where it is not of the teacher's kind."""
    model = load_model(path, prompts)
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
        data_values: Mapping[str, float] | None = None,
        on_look: OnLook = lambda *_: None,
    ) -> None:
        teacher = models.teacher
        self.config = config
        self.accelerator = accelerator
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
        decays = (config.student.ema_decay, *config.student.more_ema_decays)
        self.emas = {
            decay: Ema(self.student.module, limited_decay(decay, config.train.steps), self.student.meta_model)
            for decay in decays
        }
        self.ema = self.emas[decays[0]]
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
        self.watcher = Watcher(setting, self.learners, self.emas, decoder, data_values or {}, on_look)
        self._lag: Any = None
        accelerator.register_for_checkpointing(*self.emas.values(), self.watcher.watch, *self.objective.stateful())

    def check(self) -> None:
        for learner in self.learners:
            learner.check()

    def update(self, step: int) -> dict[str, Any]:
        loop = self.config.train
        self.watcher.lower_rates()
        values = self.objective.update(step, log_now=is_logged(step + 1, loop) or self.is_probed(step + 1))
        for ema in self.emas.values():
            ema.update(self.student.module)
        self._lag = values.get(LAG)
        return values

    def is_probed(self, step: int) -> bool:
        return is_due(step, self.watcher.every, self.config.train)

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """A look at the EMA student, see `watch`."""
        return self.watcher.look(step, None if self._lag is None else float(self._lag), folder)

    @property
    def stopped(self) -> bool:
        return self.watcher.watch.stopped

    @property
    def averaged_student(self) -> Backbone:
        """The EMA, which is what is saved and measured; all processes have to ask for it."""
        return cast(Backbone, self.ema.module)

    def headline(self, values: dict[str, float]) -> str:
        names = {**self.objective.headline, "hf": "high_frequency_ratio"}
        figures = {short: values[name] for short, name in names.items() if name in values}
        return "  ".join(f"{short} {value:.3f}" for short, value in figures.items())
