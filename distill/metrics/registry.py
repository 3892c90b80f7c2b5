"""Measures by name, in the order of the table, and what they are computed from.

Most measures are a function of a mean over images: a table has one row of numbers for each image, and a measure turns
the mean row into one value. So the data's value needs no images, only the mean rows in its statistics, and a bootstrap
resamples rows. To add a measure: a file in this package with a function under `@measure_of(table, ...)`,
`@distance_of(table, ...)` or, for what needs more than a mean, `@register_measure`; an import in `measures.py`; a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval, bootstrap_mean
from distill.metrics.features import Extractor, Features
from distill.metrics.images import stills
from distill.metrics.perceptual import PerceptualDistance
from distill.metrics.reference import ReferenceStatistics
from distill.metrics.tables import rows_of

Ideal = Literal["lower", "higher", "as data", "none"]
Kind = Literal["sets", "spectrum", "edges", "texture and grain", "colour and tone", "time", "paired"]
KINDS: tuple[Kind, ...] = get_args(Kind)
T = TypeVar("T")
Statistic = Callable[[Tensor], float]
"""A mean row [k] -> a value; nan where it has none."""
Distance = Callable[[Tensor, Tensor], float]
"""Two mean rows [k] -> how far they are apart."""


@dataclass(frozen=True)
class Context:
    """A set of images, what it is compared with, and results that several measures share, computed once.

    images: [N, C, H, W], or videos [N, C, F, H, W]. labels: [N]. paired_to: the teacher's images from the same noise
    and labels as the first M <= N of `images`.
    """

    images: Tensor
    labels: Tensor
    data: ReferenceStatistics | None
    teacher: ReferenceStatistics | None
    extractor: Extractor | None
    perceptual: PerceptualDistance | None
    paired_to: Tensor | None
    seed: int
    num_bootstrap: int
    _tables: dict[str, Tensor] = field(default_factory=dict)
    _results: dict[Any, Any] = field(default_factory=dict)

    def table(self, name: str) -> Tensor:
        """The rows [N, k] of a table."""
        if name not in self._tables:
            self._tables[name] = rows_of(name, self.images)
        return self._tables[name]

    def once(self, compute: Callable[[Context], T]) -> T:
        """What `compute` gives of this context, computed once."""
        if compute not in self._results:
            self._results[compute] = compute(self)
        return self._results[compute]

    @cached_property
    def stills(self) -> Tensor:
        """Pictures [N, C, H, W]: of videos one frame each."""
        return stills(self.images)

    @cached_property
    def extracted(self) -> Features | None:
        return self.extractor.extract(self.stills) if self.extractor else None

    @cached_property
    def pair(self) -> tuple[Tensor, Tensor] | None:
        """Images and the teacher's from the same noise."""
        return None if self.paired_to is None else (self.images[: len(self.paired_to)], self.paired_to)

    def of_mean(self, rows: Tensor, statistic: Statistic, minimum: float = -float("inf")) -> Interval:
        return bootstrap_mean(rows, statistic, num_resamples=self.num_bootstrap, seed=self.seed, minimum=minimum)

    def of_values(self, values: Tensor) -> Interval:
        """The mean of one value for each image, [N]; nan are left out."""
        known = values.isfinite()
        rows = torch.stack([torch.where(known, values, 0.0), known.to(values)], dim=1)
        return self.of_mean(rows.double(), quotient)


def quotient(row: Tensor) -> float:
    """The first of a mean row [2] over the second, such as the share of images that have a value; nan over 0."""
    first, second = row.tolist()
    return first / second if second else math.nan


@dataclass(frozen=True)
class Measure:
    """One row of the table. compute returns None if the context lacks what it needs.

    ideal: "lower", "higher", or "as data", which is best if equal to the value of the data: less and more are faults;
        "none" informs.
    has_interval: whether the limits stored with a value are meaningful.
    of_data: the value of the data itself, from its statistics; nan where it is not known.
    of_half: the value of one half of the data beside the other, what real images of that number would have.
    table, of_row: of a measure that is a function of a table's mean row (and of the data's statistics, or None).
    """

    name: str
    kind: Kind
    title: str
    unit: str
    ideal: Ideal
    explanation: str
    compute: Callable[[Context], Interval | None]
    has_interval: bool = True
    of_data: Callable[[ReferenceStatistics], float] | None = None
    of_half: Callable[[ReferenceStatistics], float] | None = None
    table: str | None = None
    of_row: Callable[[Tensor, ReferenceStatistics | None], float] | None = None


MEASURES: dict[str, Measure] = {}


def add_measure(measure: Measure) -> None:
    """Put a measure after those of its kind. Raises: ValueError if the name is taken."""
    if measure.name in MEASURES:
        raise ValueError(f"there is a measure {measure.name!r} already")
    entries = sorted([*MEASURES.values(), measure], key=lambda entry: KINDS.index(entry.kind))
    MEASURES.clear()
    MEASURES.update({entry.name: entry for entry in entries})


def register_measure(
    kind: Kind,
    title: str,
    *,
    unit: str = "",
    ideal: Ideal,
    explanation: str,
    has_interval: bool = True,
    of_data: Callable[[ReferenceStatistics], float] | None = None,
    of_half: Callable[[ReferenceStatistics], float] | None = None,
) -> Callable[[Callable[[Context], Interval | None]], Callable[[Context], Interval | None]]:
    """Register a function of `Context` under its own name, after the measures registered so far."""

    def register(compute: Callable[[Context], Interval | None]) -> Callable[[Context], Interval | None]:
        name = compute.__name__
        add_measure(Measure(name, kind, title, unit, ideal, explanation, compute, has_interval, of_data, of_half))
        return compute

    return register


def measure_of(
    table: str, kind: Kind, title: str, *, unit: str = "", ideal: Ideal = "as data", explanation: str
) -> Callable[[Statistic], Statistic]:
    """Register a function of a table's mean row under its own name."""

    def register(statistic: Statistic) -> Statistic:
        def compute(context: Context) -> Interval | None:
            found = context.of_mean(context.table(table), statistic)
            return None if found.value != found.value else found

        def of_data(reference: ReferenceStatistics) -> float:
            return statistic(reference.mean(table))

        def of_half(reference: ReferenceStatistics) -> float:
            return statistic(reference.halves(table)[1])

        half = of_half if ideal == "as data" else None
        entry = Measure(statistic.__name__, kind, title, unit, ideal, explanation, compute, True, of_data, half)
        add_measure(replace(entry, table=table, of_row=lambda row, _: statistic(row)))
        return statistic

    return register


def distance_of(
    table: str, kind: Kind, title: str, *, unit: str = "", to: Literal["data", "teacher"], explanation: str
) -> Callable[[Distance], Distance]:
    """Register, as `NAME_data` or `NAME_teacher`, how far a table's mean row is from the data's or the teacher's."""

    def register(distance: Distance) -> Distance:
        def compute(context: Context) -> Interval | None:
            reference: ReferenceStatistics | None = getattr(context, to)
            if reference is None or not reference.has_images:
                return None
            target = reference.mean(table)
            return context.of_mean(context.table(table), lambda row: distance(row, target), minimum=0.0)

        def of_half(reference: ReferenceStatistics) -> float:
            first, second = reference.halves(table)
            return distance(second, first)

        def of_row(row: Tensor, data: ReferenceStatistics | None) -> float:
            return distance(row, data.mean(table)) if data is not None and data.has_images else math.nan

        entry = Measure(f"{distance.__name__}_{to}", kind, title, unit, "lower", explanation, compute)
        add_measure(replace(entry, of_half=of_half, table=table, of_row=of_row) if to == "data" else entry)
        return distance

    return register


def data_values(reference: ReferenceStatistics) -> dict[str, float]:
    """Values of the reference images, by measure, where they have one."""
    return _values(reference, {name: measure.of_data for name, measure in MEASURES.items()})


def half_values(reference: ReferenceStatistics) -> dict[str, float]:
    """Values of one half of the reference images beside the other, by measure: the scatter that real images show."""
    return _values(reference, {name: measure.of_half for name, measure in MEASURES.items()})


def _values(
    reference: ReferenceStatistics, functions: Mapping[str, Callable[[ReferenceStatistics], float] | None]
) -> dict[str, float]:
    if not reference.has_images:
        return {}
    known = {None, *reference.tables}  # those of videos are known of videos alone
    values = {name: of(reference) for name, of in functions.items() if of and MEASURES[name].table in known}
    return {name: value for name, value in values.items() if value == value}
