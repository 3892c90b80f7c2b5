"""The interface of a condition. To add one: a file here, a `condition` on the models that take it, a test."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from distill.conditions.batches import ConditionBatch
from distill.conditions.class_labels import ClassLabels
from distill.errors import UserError


class Condition(Protocol):
    """What a model can be conditioned on: it makes the batches `y` of `model(x_t, t, y)`.

    Conditions that compare equal make the same batches, so that models with equal ones can be compared.

    num_distinct: how many different conditions it has: classes, prompts of a list.
    """

    @property
    def num_distinct(self) -> int: ...

    def random(self, num: int, generator: torch.Generator) -> ConditionBatch:
        """`num` conditions drawn from `generator`, for training without data."""
        ...

    def balanced(self, num: int) -> ConditionBatch:
        """`num` conditions, each as often as every other to within one; the first k do not depend on `num`."""
        ...

    def examples(self, most: int = ...) -> ConditionBatch:
        """At most `most` different conditions that stand for all, one row each: the columns of a grid."""
        ...

    def null(self, y: ConditionBatch) -> ConditionBatch:
        """The null condition of classifier-free guidance, as many rows as `y` and on its device."""
        ...

    def includes(self, other: object) -> bool:
        """Whether every condition of `other`, a data set's, is one of these, so that the data can train a model."""
        ...

    def select(self, names: list[str]) -> ConditionBatch:
        """The conditions that a user names, one row each. Raises: UserError for one that it does not have."""
        ...

    def names(self, y: ConditionBatch) -> list[str]:
        """What to call each row, for people."""
        ...

    def groups(self, y: ConditionBatch) -> Tensor:
        """A number from 0 on per row, (B) in int64; rows with one number have the same condition."""
        ...

    def group_names(self) -> list[str] | None:
        """What to call each group in a report; None where its number says it."""
        ...

    def __str__(self) -> str:
        """Such as "10 classes", for messages."""
        ...


def condition_of(model: Any) -> Condition:
    """`model.condition`; of a model that has a `null_label` K instead, as `dar.SiT` does, labels of K classes.

    Raises: UserError where it has neither, as a model of prompts has not before it is given any.
    """
    condition = getattr(model, "condition", None)
    if condition is not None:
        return condition
    if not hasattr(model, "null_label"):
        raise UserError(
            f"nothing says what {type(model).__name__} is conditioned on: if it is told prompts, give it a folder of "
            "them, prompts=FOLDER (scripts/encode_prompts.py makes one)"
        )
    return ClassLabels(model.null_label)
