"""The interface of an objective, what it is given, and the registry.

To add one: a file here with a class under `@register("name")`, imported in `__init__`; a section `objective` in a
configuration; a test. `dmd.py` is the model to follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import Condition
from distill.config import OptimConfig, RunConfig
from distill.data import Dataset
from distill.models.backbone import Backbone
from distill.sampling import Denoiser
from distill.training.learner import Learner


@dataclass(frozen=True)
class Network:
    """A network that an objective trains beside the student.

    num_updates: over the whole training. copies_teacher: whether it computes what the teacher does at the start,
        which is checked before the first update.
    """

    model: nn.Module
    optim: OptimConfig
    num_updates: int
    copies_teacher: bool = False


@dataclass(frozen=True)
class Turn:
    """The work of one optimizer step, for `plan`; all counts are of the whole batch.

    role: what learns, `student` or the name of a network. per_update: how often in an update; warmup: how often
    before the first. passes: forward passes of one sample without gradient; rows: those that are learnt from.
    teacher_passes: rows of the frozen models' widest pass for each of `rows`, while what is kept for the backward
    pass is in memory; 0 where none computes then.
    """

    role: str
    per_update: int
    warmup: int
    passes: float
    rows: int
    teacher_passes: int


@dataclass(frozen=True)
class Setting:
    """What an objective works with.

    teacher: frozen, with its guidance. student: its learner. networks: learners of what `Objective.networks` named.
    t_list: the student's timesteps, descending (S). teacher_std: of the teacher's samples. data: None where
    `Objective.needs_data` is false.
    """

    config: RunConfig
    accelerator: Accelerator
    condition: Condition
    sample_shape: tuple[int, ...]
    t_range: tuple[float, float]
    t_list: Tensor
    teacher: Denoiser
    teacher_std: float
    student: Learner
    networks: dict[str, Learner]
    data: Dataset | None


class Objective(Protocol):
    """What a student learns by: loss terms, the networks they need, the data they need, the figures they log.

    title: its name for people. Config: the dataclass of the section `objective`; its first field is `name`.
    needs_data: whether `data` must name a data set. headline: figures of the log that stand beside the progress bar,
    by a short name.
    """

    title: ClassVar[str]
    Config: ClassVar[type]
    needs_data: ClassVar[bool]
    headline: ClassVar[dict[str, str]]

    def __init__(self, setting: Setting) -> None: ...

    @classmethod
    def networks(cls, config: RunConfig, teacher: Backbone) -> dict[str, Network]:
        """The networks that learn beside the student, by role; {} for none."""
        ...

    @classmethod
    def turns(cls, config: RunConfig) -> Sequence[Turn]:
        """The optimizer steps of one update, for `plan`."""
        ...

    def stateful(self) -> Sequence[Any]:
        """What a checkpoint must hold beside learners: objects with state_dict and load_state_dict."""
        ...

    def update(self, step: int, *, log_now: bool) -> dict[str, Any]:
        """Update number `step` (from 0): its own networks and the student, each by its learner.

        Random numbers come from `generator_for(seed, purpose, step)`, alike on every process.

        log_now: whether the figures of this update are written to the log.
        Returns: figures for the log, which may be on the device still: an update that is not logged waits for nothing.
        """
        ...


OBJECTIVES: dict[str, type[Objective]] = {}
O = TypeVar("O", bound=type)  # noqa: E741


def register(name: str) -> Callable[[O], O]:
    """Make an objective selectable as `objective.name`."""

    def add(objective: O) -> O:
        if name in OBJECTIVES:
            raise ValueError(f"objective {name!r} is registered already")
        OBJECTIVES[name] = objective
        return objective

    return add
