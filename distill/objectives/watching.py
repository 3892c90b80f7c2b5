"""Looks at the student during training, the guards that act on them, and the student of the best one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.conditions import num_rows
from distill.latents.decoding import Decoder
from distill.models.backbone import Backbone
from distill.models.ema import Ema
from distill.objectives.base import Setting
from distill.objectives.config import RunConfig
from distill.objectives.watch import LOWER, Event, Look, Watch, Yardstick, faults, watched_values
from distill.processes import Processes
from distill.progress import logger
from distill.render import clamp_images, save_grid
from distill.sampling import draw_images, few_step_sampler, grid_conditions, teacher_sampler
from distill.sampling.samplers import Sampler
from distill.training.learner import Learner

GRID_ROWS = 8
OnLook = Callable[[Watch], object]


class Watcher:
    """Draws, measures, keeps the best and acts.

    Args:
        learners: all, whose rates guards lower; the last is the student's. emas: of the student, by decay, the one that
            guards judge first.
        data: values of the data by measure, on the main process; none where they are not known.
        on_look: called on the main process after each look, with all so far.
    """

    def __init__(
        self,
        setting: Setting,
        learners: Sequence[Learner],
        emas: Mapping[float, Ema],
        decoder: Decoder,
        data: Mapping[str, float],
        on_look: OnLook,
    ) -> None:
        self.setting, self.learners, self.emas, self.decoder = setting, learners, emas, decoder
        self.config: RunConfig = setting.config
        self.accelerator: Accelerator = setting.accelerator
        self.watch = Watch()
        self._data, self._on_look = data, on_look
        watch = self.config.watch
        self._returns = watch.pick or "roll_back" in vars(watch.guards).values()  # to the best look, which is kept
        examples = num_rows(setting.condition.examples())
        self._rows = -(-self.config.watch.num_images // examples)
        self._y = grid_conditions(setting.condition, self._rows)
        self._labels = setting.condition.groups(self._y)
        self._teachers: Tensor | None = None
        self._yardstick: Yardstick | None = None

    @property
    def every(self) -> int:
        """Updates between looks."""
        return self.config.watch.every or self.config.train.grid_every

    def lower_rates(self) -> None:
        """To what guards have brought them, in this run or before it was resumed."""
        for learner in self.learners:
            learner.rate_factor = self.watch.rate

    def look(self, step: int, lag: float | None, folder: Path) -> dict[str, float]:
        """Look at the averages after update `step`, write a grid and act; all processes have to. Returns: figures."""
        if self._teachers is None:
            self._teachers = self._drawn(self._teacher_sampler())
        figures: dict[str, float] = {}
        looks = []
        for number, (decay, ema) in enumerate(self.emas.items()):
            averaged = ema.module
            sampler = few_step_sampler("student", averaged, self.setting.t_list, self.config.student.ode_steps)
            images = self._drawn(sampler)
            look = None
            if self.accelerator.is_main_process:
                if number == 0:
                    shown = images.unflatten(0, (-1, self._rows))[:, :GRID_ROWS]
                    save_grid(shown.flatten(0, 1), shown.shape[1], folder / f"step_{step:08d}.png")
                look = self._measured(step, images, decay if number else None)
            looks.append(Processes.all().agreed(look))
            figures |= looks[-1].figures()
            if self.watch.add(looks[-1]) and self._returns:
                self.watch.averages = {name: value.cpu().clone() for name, value in ema.averages().items()}
        self._act(looks[0], lag)
        if self.accelerator.is_main_process:
            self._on_look(self.watch)
        return {"high_frequency_ratio": looks[0].values["high_frequency_ratio"], **figures}

    def best_student(self) -> Backbone | None:
        """The average of the best look; None where it is that of the last update, or the best is not picked."""
        best, looks = self.watch.best_look, self.watch.looks
        if not self.config.watch.pick or best is None or (best.step == looks[-1].step and best.decay is None):
            return None
        device = self.accelerator.device
        first = next(iter(self.emas.values()))
        return first.with_averages({name: value.to(device) for name, value in self.watch.averages.items()})

    def _drawn(self, sampler: Sampler) -> Tensor:
        with self.accelerator.autocast():
            images, _ = draw_images(
                sampler,
                self._y,
                seed=0,
                batch_size=self.config.evaluate.batch_size,
                decoder=self.decoder,
                processes=Processes.all(),
            )
        return clamp_images(images)

    def _teacher_sampler(self) -> Sampler:
        model: Any = self.setting.teacher.model
        return teacher_sampler("teacher", model, self.config.teacher, self.config.watch.teacher_steps)

    def _measured(self, step: int, images: Tensor, decay: float | None) -> Look:
        assert self._teachers is not None
        self._yardstick = self._yardstick or Yardstick.of(self._teachers, self._labels, self._data)
        return self._yardstick.look(step, watched_values(images, self._labels, self._teachers), decay)

    def _act(self, look: Look, lag: float | None) -> None:
        guards, watch = self.config.watch.guards, self.watch
        actions: set[str] = set()  # each is taken once, however many guards ask for it
        for guard, why in faults(look, lag, guards).items():
            event = Event(look.step, guard, getattr(guards, guard), why)
            actions.add(event.action)
            watch.events.append(event)
            if self.accelerator.is_main_process:
                logger.warning(f"watch: {event}")
        if "roll_back" in actions:
            self._roll_back()
        if actions & {"lower_rate", "roll_back"}:
            watch.rate *= LOWER
            self.lower_rates()
        watch.stopped |= "stop" in actions

    @torch.no_grad()
    def _roll_back(self) -> None:
        """The student, its averages and its optimizer begin anew from the best look."""
        for ema in self.emas.values():
            ema.load_averages(self.watch.averages)
        self.learners[-1].restart(self.watch.averages)
