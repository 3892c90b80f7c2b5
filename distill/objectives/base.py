"""The interface of an objective, what it is given, and the registry.

To add one: a file here with a class under `@register("name")`, imported in `__init__`; a section `objective` or
`mix.name` in a configuration; a test. `dmd.py` is the model to follow, `flow_matching.py` the shortest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import Condition, ConditionBatch
from distill.config import OptimConfig
from distill.config.checks import at_least
from distill.data import Dataset
from distill.models.backbone import Backbone
from distill.objectives.config import SECTIONS, RunConfig
from distill.objectives.rollouts import Rollout
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
    pass is in memory; 0 where none computes then. told_step: whether an embedding of the step learns with it.
    """

    role: str
    per_update: int
    warmup: int
    passes: float
    rows: int
    teacher_passes: int
    told_step: bool = False


@dataclass(frozen=True)
class Cost:
    """What a loss of the student costs an update beside the samples themselves, for `plan`, as in `Turn`.

    copies: frozen models that it keeps beside the teacher, as large as the student.
    """

    passes: float = 0
    rows: int = 0
    teacher_passes: int = 0
    copies: int = 0


@dataclass(frozen=True)
class Samples:
    """The student's samples of one update, or of one micro-batch of it.

    x0: (K, *sample_shape), with the gradient to the student. y: K rows. step: (K), the step of the list that made them.
    """

    x0: Tensor
    y: ConditionBatch
    step: Tensor


@dataclass(frozen=True)
class Setting:
    """What an objective works with.

    teacher: frozen, with its guidance. student: its learner. networks: learners of all that `Objective.networks` named.
    t_list: the student's timesteps, descending (S). teacher_std: of the teacher's samples. rollout: gives inputs that
    the student's own sampler would meet. data: None where no objective needs it.
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
    rollout: Rollout
    data: Dataset | None


@dataclass
class ObjectiveConfig:
    """What the section of every objective has. weight: of its loss, beside those of `mix`."""

    name: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        at_least(self, "objective", 0, "weight")


class Objective(ABC):
    """What a student learns by: a loss, the networks that it needs, the data that it needs, the figures that it logs.

    title: its name for people. Config: the dataclass of its section, an `ObjectiveConfig`.
    needs_data: whether `data` must name a data set. on_samples: whether its loss is of the student's samples.
    headline: figures of the log that stand beside the progress bar, by a short name.

    Args:
        config: its own section.
    """

    title: ClassVar[str]
    Config: ClassVar[type]
    needs_data: ClassVar[bool] = False
    on_samples: ClassVar[bool] = False
    headline: ClassVar[dict[str, str]] = {"loss": "student/loss"}

    def __init__(self, setting: Setting, config: Any) -> None:
        self.setting, self.config = setting, config

    @classmethod
    @abstractmethod
    def cost(cls, config: RunConfig, own: Any) -> Cost:
        """What its part of the student's loss costs, for `plan`. own: its section."""

    @abstractmethod
    def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[ConditionBatch, ...]:
        """What its loss needs in update number `step`: rows of tensors, this process's share.

        Args:
            num_rows: of the student's samples, over all processes. generator: for its random numbers, which are drawn
                alike on every process.
        """

    @abstractmethod
    def loss(self, samples: Samples | None, *batch: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Its loss of a micro-batch, the mean over rows, and what `figures` wants of them, row by row.

        samples: None unless `on_samples`. batch: the rows of `batch`.
        """

    @classmethod
    def networks(cls, config: RunConfig, own: Any, teacher: Backbone) -> dict[str, Network]:
        """The networks that learn beside the student, by role. own: its section. Raises: UserError for what does not
        go together."""
        return {}

    @classmethod
    def turns(cls, config: RunConfig, own: Any) -> Sequence[Turn]:
        """The optimizer steps that its networks take in an update, for `plan`; each takes a batch of the rollout."""
        return []

    def stateful(self) -> Sequence[Any]:
        """What a checkpoint must hold beside learners: objects with state_dict and load_state_dict."""
        return []

    def teach(self, step: int, *, log_now: bool) -> dict[str, Any]:
        """Update its networks, before update number `step` (from 0) of the student.

        log_now: whether the figures of this update are written to the log.
        Returns: figures for the log, which may be on the device still: an update that is not logged waits for nothing.
        """
        return {}

    def figures(self, rows: Sequence[Tensor], *, log_now: bool) -> dict[str, Any]:
        """Figures for the log after the student's update. rows: what `loss` gave, of the whole batch."""
        return {}


OBJECTIVES: dict[str, type[Objective]] = {}
O = TypeVar("O", bound=type)  # noqa: E741


def register(name: str) -> Callable[[O], O]:
    """Make an objective selectable as `objective.name`, and as `mix.name`."""

    def add(objective: O) -> O:
        if name in OBJECTIVES:
            raise ValueError(f"objective {name!r} is registered already")
        OBJECTIVES[name] = objective
        SECTIONS[name] = objective.Config
        return objective

    return add
