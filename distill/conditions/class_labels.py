"""Class labels: 0, .., K - 1, and K for "no class"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions.batches import ConditionBatch
from distill.errors import UserError

CLASSES_FILE = "classes.json"
MAX_EXAMPLES = 10  # columns of a grid, of a model with a thousand classes


@dataclass(frozen=True)
class ClassLabels:
    """The condition of a class-conditional model; batches are labels (B) in int64.

    trained: the classes that the model was shown, ascending, and which alone are drawn; None for all.
    class_names: of all K classes, where they have names.
    """

    num_classes: int
    trained: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = field(default=None, compare=False)

    @property
    def labels(self) -> Tensor:
        """The classes that are drawn."""
        return torch.arange(self.num_classes) if self.trained is None else torch.tensor(self.trained, dtype=torch.int64)

    @property
    def num_distinct(self) -> int:
        return len(self.labels)

    def random(self, num: int, generator: torch.Generator) -> Tensor:
        return self.labels[torch.randint(self.num_distinct, (num,), generator=generator)]

    def balanced(self, num: int) -> Tensor:
        """All classes in turn, again and again."""
        return self.labels[torch.arange(num) % self.num_distinct]

    def examples(self, most: int = MAX_EXAMPLES) -> Tensor:
        """All classes, or `most` of them, evenly spaced."""
        return self.labels[torch.linspace(0, self.num_distinct - 1, min(self.num_distinct, most)).round().long()]

    def null(self, y: ConditionBatch) -> Tensor:
        return torch.full_like(y, self.num_classes)

    def includes(self, other: object) -> bool:
        return isinstance(other, ClassLabels) and other.num_classes <= self.num_classes

    def select(self, names: list[str]) -> Tensor:
        return torch.tensor([self._label(name) for name in names])

    def _label(self, name: str) -> int:
        # Names first: of folders 1, 2 and 10 a person who says 10 means the third.
        if self.class_names is not None and name in self.class_names:
            label = self.class_names.index(name)
        elif name.isdigit():
            label = int(name)
        else:
            raise UserError(f"class {name!r} is not known; the model has {self}{self._shown_names()}")
        if label >= self.num_classes:
            raise UserError(f"class {name} is out of range; the model has 0 to {self.num_classes - 1}")
        if self.trained is not None and label not in self.trained:
            raise UserError(f"class {name} was never trained; no image showed it")
        return label

    def _shown_names(self) -> str:
        if self.class_names is None:
            return " without names, 0, 1, .."
        return ": " + ", ".join(self.class_names[:5]) + (", .." if self.num_classes > 5 else "")

    def names(self, y: ConditionBatch) -> list[str]:
        return [f"class {label}" if self.class_names is None else self.class_names[label] for label in y.tolist()]

    def groups(self, y: ConditionBatch) -> Tensor:
        return y

    def group_names(self) -> list[str] | None:
        return None if self.class_names is None else list(self.class_names)

    def shown(self, data: ClassLabels, labels: Tensor) -> ClassLabels:
        """This condition after training on `labels` of a data set, whose class names take the place of its own."""
        trained = sorted(set(self.labels.tolist()) | set(labels.tolist())) if self.trained is not None else None
        names = self.class_names
        if data.class_names is not None:
            rest = self.names(torch.arange(data.num_classes, self.num_classes))
            names = (*data.class_names, *rest)
        return ClassLabels(self.num_classes, _all_or(trained, self.num_classes), names)

    def save(self, folder: Path) -> None:
        """Write `classes.json` into a model folder if there is anything to say: names, null for untrained classes."""
        if self.class_names is None and self.trained is None:
            return
        trained = set(self.labels.tolist())
        names = self.names(torch.arange(self.num_classes))
        whole = [name if label in trained else None for label, name in enumerate(names)]
        (folder / CLASSES_FILE).write_text(json.dumps(whole) + "\n")

    @classmethod
    def of_names(cls, names: Sequence[str | None]) -> ClassLabels:
        """Classes with names; a class whose name is None is untrained."""
        trained = [label for label, name in enumerate(names) if name is not None]
        called = tuple(f"class {label}" if name is None else name for label, name in enumerate(names))
        return cls(len(names), _all_or(trained, len(names)), called)

    @classmethod
    def load(cls, folder: Path, num_classes: int) -> ClassLabels:
        """What `save` wrote for a model of so many classes; without a file, all are trained and have no names.

        Raises: UserError if the file is damaged or of another number of classes.
        """
        file = folder / CLASSES_FILE
        if not file.is_file():
            return cls(num_classes)
        try:
            names = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
        if not isinstance(names, list) or not all(name is None or isinstance(name, str) for name in names):
            raise UserError(f"{file} must hold a list of names, one per class, null for a class without training")
        if len(names) != num_classes:
            raise UserError(f"{file} names {len(names)} classes; the model has {num_classes}")
        if names and set(names) == {None}:
            raise UserError(f"{file} names no class that was trained; remove it if all were")
        return cls.of_names(names)

    def __str__(self) -> str:
        return f"{self.num_classes} classes"


def _all_or(trained: Sequence[int] | None, num_classes: int) -> tuple[int, ...] | None:
    return None if trained is None or len(trained) == num_classes else tuple(trained)
