"""Class labels: 0, .., K - 1, and K for "no class"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.conditions.batches import ConditionBatch
from distill.errors import UserError

MAX_EXAMPLES = 10  # columns of a grid, of a model with a thousand classes


@dataclass(frozen=True)
class ClassLabels:
    """The condition of a class-conditional model; batches are labels (B) in int64."""

    num_classes: int

    @property
    def num_distinct(self) -> int:
        return self.num_classes

    def random(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randint(self.num_classes, (num,), generator=generator)

    def balanced(self, num: int) -> Tensor:
        """0, 1, .., K - 1, 0, 1, .."""
        return torch.arange(num) % self.num_classes

    def examples(self, most: int = MAX_EXAMPLES) -> Tensor:
        """All classes, or `most` of them, evenly spaced."""
        return torch.linspace(0, self.num_classes - 1, min(self.num_classes, most)).round().long()

    def null(self, y: ConditionBatch) -> Tensor:
        return torch.full_like(y, self.num_classes)

    def includes(self, other: object) -> bool:
        return isinstance(other, ClassLabels) and other.num_classes <= self.num_classes

    def select(self, names: list[str]) -> Tensor:
        for name in names:
            if not name.isdigit() or int(name) >= self.num_classes:
                raise UserError(f"class {name} is out of range; the model has 0 to {self.num_classes - 1}")
        return torch.tensor([int(name) for name in names])

    def names(self, y: ConditionBatch) -> list[str]:
        return [f"class {label}" for label in y.tolist()]

    def groups(self, y: ConditionBatch) -> Tensor:
        return y

    def group_names(self) -> None:
        """The labels themselves; `classes.json` in a model folder names them."""

    def __str__(self) -> str:
        return f"{self.num_classes} classes"
