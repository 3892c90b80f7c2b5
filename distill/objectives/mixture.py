"""What a student learns by: an objective, or a sum of several, by weight.

One update = the updates that the objectives' own networks take, then one of the student.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.objectives.base import OBJECTIVES, Cost, Network, Objective, Samples, Setting, Turn
from distill.objectives.config import RunConfig
from distill.objectives.rollouts import ROLLOUTS
from distill.sampling import velocity_to_x0
from distill.seeds import generator_for


def sections(config: RunConfig) -> dict[str, Any]:
    """The sections of all objectives of a run by their names, the one of `objective` first."""
    return {config.objective.name: config.objective} | config.mix


def networks_of(config: RunConfig, teacher: Backbone) -> dict[str, Network]:
    """The networks that learn beside the student. Raises: UserError where two objectives train one of a name."""
    found: dict[str, Network] = {}
    for name, own in sections(config).items():
        for role, network in OBJECTIVES[name].networks(config, own, teacher).items():
            if role in found:
                others = f"{config.objective.name} and mix.{name}"
                raise UserError(f"{others} do not mix: both train a network {role}")
            found[role] = network
    return found


def needing_data(config: RunConfig) -> list[str]:
    """The objectives of a run that learn from `data`."""
    return [name for name in sections(config) if OBJECTIVES[name].needs_data]


def title_of(config: RunConfig) -> str:
    first, *others = (OBJECTIVES[name].title for name in sections(config))
    return " + ".join([first, *(title[0].lower() + title[1:] for title in others)])


def turns_of(config: RunConfig) -> list[Turn]:
    """The optimizer steps of one update, for `plan`; the student's is the last."""
    turns: list[Turn] = []
    costs: list[Cost] = []
    for name, own in sections(config).items():
        turns += OBJECTIVES[name].turns(config, own)
        costs.append(OBJECTIVES[name].cost(config, own))
    if any(OBJECTIVES[name].on_samples for name in sections(config)):
        rollout = ROLLOUTS[config.student.rollout]
        rows, before, _ = rollout.cost(config.train.batch_size, config.student.steps)
        costs.append(Cost(before, rows))
    passes, rows = sum(cost.passes for cost in costs), sum(cost.rows for cost in costs)
    return [*turns, Turn("student", 1, 0, passes, rows, max(cost.teacher_passes for cost in costs))]


def copies_of(config: RunConfig) -> list[str]:
    """Frozen copies of the student that objectives keep, a name each."""
    counts = {name: OBJECTIVES[name].cost(config, own).copies for name, own in sections(config).items()}
    return [f"{name}'s copy" for name, count in counts.items() for _ in range(count)]


def num_batches(config: RunConfig) -> int:
    """Batches of the student's samples that an update takes."""
    return sum(turn.per_update for turn in turns_of(config))


class Mixture:
    """The objectives of a run, by name, and the student's update."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        owns = sections(setting.config)
        self.members: Mapping[str, Objective] = {name: OBJECTIVES[name](setting, own) for name, own in owns.items()}
        self._weights = {name: own.weight for name, own in owns.items()}
        self._on_samples = [name for name, member in self.members.items() if member.on_samples]
        self._parts: dict[str, int] = {}  # what each gives a batch, and what of it comes back
        self._rows: dict[str, int] = {}
        self._teach_student = setting.student.on(self._loss, setting.config.train.accumulation)

    @property
    def headline(self) -> dict[str, str]:
        return {short: name for member in self.members.values() for short, name in member.headline.items()}

    def stateful(self) -> list[Any]:
        return [state for member in self.members.values() for state in member.stateful()]

    def update(self, step: int, *, log_now: bool) -> dict[str, Any]:
        """Update number `step` (from 0). log_now: whether its figures are written to the log.

        Returns: figures for the log, which may be on the device still: an update that is not logged waits for nothing.
        """
        self.setting.rollout.begin(step)
        values: dict[str, Any] = {}
        for member in self.members.values():
            values |= member.teach(step, log_now=log_now)
        return values | self.update_student(step, log_now=log_now)

    def update_student(self, step: int, *, log_now: bool) -> dict[str, Any]:
        """The student's part of update number `step`."""
        setting = self.setting
        generator = generator_for(setting.config.train.seed, "student", step)
        inputs = setting.rollout.inputs(generator) if self._on_samples else None
        num_rows = len(inputs.x_in) * setting.accelerator.num_processes if inputs else 0
        batches = {name: member.batch(step, num_rows, generator) for name, member in self.members.items()}
        self._parts = {name: len(batch) for name, batch in batches.items()}
        parts = [part for batch in batches.values() for part in batch]
        asked = (inputs.x_in, inputs.t_in, inputs.y, inputs.step) if inputs else ()
        found, rows = self._teach_student(step, *asked, *parts)
        values: dict[str, Any] = {f"student/{name}": value for name, value in found.items()}
        left = iter(rows)
        for name, member in self.members.items():
            loss = next(left)
            if len(self.members) > 1:
                values[f"student/loss/{name}"] = loss.mean()
            values |= member.figures([next(left) for _ in range(self._rows[name])], log_now=log_now)
        return values

    def _loss(self, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The weighted sum of the objectives' losses of a micro-batch; each loss, and the rows of its objective."""
        setting, left = self.setting, iter(batch)
        samples = None
        if self._on_samples:
            x_in, t_in, y, step = (next(left) for _ in range(4))
            with setting.accelerator.autocast():
                samples = Samples(velocity_to_x0(x_in, setting.student.model(x_in, t_in, y), t_in), y, step)
        total, rows = torch.zeros((), device=setting.accelerator.device), []
        for name, member in self.members.items():
            own = [next(left) for _ in range(self._parts[name])]
            with setting.accelerator.autocast():
                loss, of_member = member.loss(samples if member.on_samples else None, *own)
            total = total + self._weights[name] * loss
            rows += [loss.detach().view(1), *of_member]
            self._rows[name] = len(of_member)
        return total, tuple(rows)
