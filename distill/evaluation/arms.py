"""Arms of a comparison: one or more sets of images each, and what the page says about two of them."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill import report
from distill.evaluation.differences import (
    SET_RESAMPLES,
    Difference,
    Resampled,
    answer,
    differences,
    resampled,
    resampled_sets,
)
from distill.evaluation.evaluator import Evaluator
from distill.metrics import MEASURES, rows_of
from distill.metrics.edges import gradients
from distill.metrics.images import stills
from distill.progress import progress_bar
from distill.render import clamp_images, frames, strip
from distill.report.table import format_number
from distill.seeds import generator_for

BY_CLASS = ("edge_width", "sparsity_fine", "grain")
MAX_CLASSES = 20


@dataclass(frozen=True)
class Arm:
    """images: of each training, (N, C, H, W) or (N, C, F, H, W); all arms have the same N. labels: the class of each
    image, (N).

    is_paired: whether picture i of all such arms came from the same noise and condition.
    """

    name: str
    images: Sequence[Tensor]
    labels: Tensor
    is_paired: bool = True


@dataclass(frozen=True)
class Compared:
    """The arm `name` against the first arm."""

    name: str
    baseline: str
    differences: list[Difference]

    @property
    def heading(self) -> str:
        return f"{self.name} against {self.baseline}"

    @property
    def answer(self) -> list[str]:
        return answer(self.name, self.baseline, self.differences)


def compare_arms(arms: Sequence[Arm], evaluator: Evaluator) -> list[Compared]:
    """Every other arm against the first."""
    sides: list[list[dict[str, Resampled]]] = []
    with progress_bar() as progress:
        bar = progress.add_task("comparing", total=sum(len(arm.images) for arm in arms))
        for number, arm in enumerate(arms):
            sides.append([])
            for images in arm.images:
                seed = 0 if arm.is_paired else 1 + number  # pictures of no common origin are drawn apart
                sides[-1].append(_resampled(images, arm.labels, evaluator, seed))
                progress.advance(bar)
    first, *others = arms
    return [
        Compared(arm.name, first.name, differences(side, sides[0], evaluator.data, len(first.labels)))
        for arm, side in zip(others, sides[1:], strict=True)
    ]


def _resampled(images: Tensor, labels: Tensor, evaluator: Evaluator, seed: int) -> dict[str, Resampled]:
    num, data = max(2, evaluator.config.bootstrap), evaluator.data
    found = resampled(images, labels, data, evaluator.perceptual, num_resamples=num, seed=seed)
    if evaluator.extractor is not None:
        features, few = evaluator.extractor.extract(stills(images)), min(num, SET_RESAMPLES)
        found |= resampled_sets(features, labels, data, evaluator.teacher, num_resamples=few, seed=seed)
    return found


def difference_table(compared: Compared) -> report.TextTable:
    rows = []
    for one in compared.differences:
        entry = MEASURES[one.measure]
        interval = f"{format_number(one.gain)} [{format_number(one.low)}, {format_number(one.high)}]"
        rows.append([
            entry.title, format_number(one.first), format_number(one.second),
            "–" if math.isnan(one.data) else format_number(one.data), interval, _chance(one.p), _chance(one.adjusted),
            "–" if math.isnan(one.effect) else f"{one.effect:+.2f}", format_number(one.smallest),
        ])  # fmt: skip
    header = ["Measure", compared.name, compared.baseline, "data", f"gain of {compared.name} [95 %]", "p",
              "p, corrected", "effect", "smallest gain to be found"]  # fmt: skip
    note = (
        "A gain is positive where the first is nearer to the data, or lower where lower is better. p is corrected over "
        "the rows by Holm's method. The effect is the gain over the standard deviation of one picture; the smallest "
        "gain would have been found with a probability of 80 %."
    )
    return report.TextTable(compared.heading, header, rows, note)


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def class_table(arms: Sequence[Arm], names: Sequence[str]) -> report.TextTable:
    """The measures of `BY_CLASS` by class, of the first training of each arm, for classes that all arms have."""
    header = ["Class", *(f"{MEASURES[name].title}, {arm.name}" for name in BY_CLASS for arm in arms)]
    tables = {MEASURES[name].table for name in BY_CLASS}
    rows = {table: [rows_of(str(table), arm.images[0]) for arm in arms] for table in tables}
    lines = []
    common = sorted(set.intersection(*(set(arm.labels.tolist()) for arm in arms)))
    for label in common[:MAX_CLASSES]:
        cells = []
        for name in BY_CLASS:
            entry = MEASURES[name]
            assert entry.of_row is not None
            for arm, side in zip(arms, rows[entry.table], strict=True):
                value = entry.of_row(side[arm.labels == label].double().mean(0), None)
                cells.append("–" if math.isnan(value) else format_number(value))
        lines.append([names[label] if label < len(names) else str(label), *cells])
    return report.TextTable("By class", header, lines)


def crops(first: Arm, second: Arm) -> list[report.Crop]:
    """Pictures of two paired arms: those that differ most, in the middle, and one by lot."""
    pair = (first.images[0], second.images[0])
    distance = torch.stack([(a - b).square().mean() for a, b in zip(*pair, strict=True)])
    order = distance.argsort(descending=True).tolist()
    lot = int(torch.randint(len(order), (1,), generator=generator_for(0, "crops")))
    chosen = {"differ most": order[0], "second": order[1], "in the middle": order[len(order) // 2], "by lot": lot}
    return [
        report.Crop(
            f"{rule}: picture {index}, RMS difference {math.sqrt(float(distance[index])):.3f}",
            [first.name, second.name],
            [strip(clamp_images(side[index][None]))[0].numpy() for side in pair],
            [_steepness(side[index]).numpy() for side in pair],
        )
        for rule, index in chosen.items()
    ]


def _steepness(sample: Tensor) -> Tensor:
    """The size of the gradient at each place of a sample, laid out as `strip` does, (H', W')."""
    maps = gradients(frames(sample[None])).square().sum(1).sqrt()
    return strip(maps[None, None])[0, 0]


def comparison_files(compared: Sequence[Compared], notes: Sequence[str]) -> dict[str, bytes]:
    """The content of comparison.json and comparison.csv."""
    plain = [
        {"first": c.name, "second": c.baseline, "answer": c.answer, "differences": [d.to_json() for d in c.differences]}
        for c in compared
    ]
    listed = json.dumps({"compared": plain, "notes": list(notes)}, indent=2) + "\n"
    text = io.StringIO()
    lines = [{"first_arm": c.name, "second_arm": c.baseline, **d.to_json()} for c in compared for d in c.differences]
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return {"comparison.json": listed.encode(), "comparison.csv": text.getvalue().encode()}
