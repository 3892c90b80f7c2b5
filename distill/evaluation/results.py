"""From measured samplers to the page: collects the data that `distill.report` draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar.diagnostics import readers_of
from dar.diagnostics.measures import weight_shares
from dar.routing import DepthRouting
from distill import report
from distill.conditions import Condition, condition_of, to_device
from distill.config import EvalConfig, TeacherConfig
from distill.evaluation.drawing import Drawing, draw
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.latents.decoding import Decoder
from distill.metrics import (
    MEASURES,
    Interval,
    ReferenceStatistics,
    data_values,
    half_values,
    rows_of,
)
from distill.metrics.edges import BIN_WIDTH, MAX_WIDTH, NUM_BINS, WIDTH_BINS
from distill.metrics.spectrum import spectrum_of_row
from distill.processes import Processes
from distill.render import strip
from distill.report.versions import versions
from distill.sampling.samplers import Sampler, num_in_grid, teacher_sampler
from distill.seeds import generator_for

EDGE_BINS = 16  # bins of the histogram per bin of the plot
NUM_ROUTING_T = 9
NUM_ROUTING_SAMPLES = 60


@dataclass(frozen=True)
class Entry:
    """One column of a report.

    column: its name, role and cost, with its images of the first labels.
    spectrum: frequency and power, (K) each.
    gradients, widths: mean rows of `gradient_histogram` and `edge_widths`.
    spectrum, gradients and widths cover all images in its statistics.
    """

    column: report.Sampler
    measured: Measured
    spectrum: tuple[Tensor, Tensor]
    gradients: Tensor
    widths: Tensor


def spectrum_of(statistics: ReferenceStatistics) -> tuple[Tensor, Tensor]:
    return spectrum_of_row(statistics.mean("rings"))


def mean_row(table: str, images: Tensor) -> Tensor:
    """The mean row of a table over images."""
    return rows_of(table, images).double().mean(0)


def teachers_at(numbers: Iterable[int], reference: Sampler, settings: TeacherConfig) -> list[Sampler]:
    """The reference sampler's model with each of these numbers of steps, except the number that it already has.

    By the ODE where `reference` takes the SDE, which is of no use in few steps.
    """
    if settings.solver == "sde":
        settings = replace(settings, solver="euler")
    return [
        teacher_sampler(f"teacher, {number} steps", reference.model, settings, number)
        for number in sorted(set(numbers) - {reference.num_steps})
    ]


def draw_for_report(
    evaluator: Evaluator | None,
    samplers: Sequence[Sampler],
    config: EvalConfig,
    decoder: Decoder,
    num_rows: int,
    keep: Path | None = None,
) -> list[Drawing]:
    """Images of the reference sampler, the first, and of the others. All processes call this.

    If statistics of the reference sampler are stored, only its grid is drawn, `num_rows` of each condition.

    Args:
        evaluator: of the main process; None in others. keep: as in `draw`.
    """
    reference, *others = samplers
    num_reference = config.num_images
    if evaluator and evaluator.measured_teacher:
        num_reference = num_in_grid(num_rows, reference.condition.num_distinct, num_reference)
    num_reference = Processes.all().agreed(num_reference)
    return draw([(reference, num_reference), *((other, config.num_images) for other in others)], config, decoder, keep)


def measured_entries(evaluator: Evaluator, drawings: Sequence[Drawing], num_rows: int) -> list[Entry]:
    """Measure what `draw_for_report` drew."""
    reference, *others = drawings
    if evaluator.teacher is None:
        evaluator.teacher = evaluator.statistics(reference)
    measured = evaluator.measured_teacher or evaluator.measure(reference)
    num_grid = num_in_grid(num_rows, reference.sampler.condition.num_distinct, evaluator.config.num_images)
    entries = [_entry(reference, measured, num_grid, evaluator.teacher.mean)]
    for drawing in others:
        measured = evaluator.measure(drawing, paired_to=reference.images)
        entries.append(_entry(drawing, measured, num_grid, partial(mean_row, images=drawing.images)))
    return entries


def _entry(drawing: Drawing, measured: Measured, num_grid: int, row: Callable[[str], Tensor]) -> Entry:
    """row: the mean row of a table, by name."""
    sampler = drawing.sampler
    column = report.Sampler(
        name=sampler.name,
        role=sampler.role,
        images=strip(drawing.images[:num_grid]).numpy(),  # a copy: images on disk do not stay
        num_steps=sampler.num_steps,
        nfe=sampler.evaluations,
        images_per_second=drawing.images_per_second,
        note=sampler.description,
    )
    return Entry(column, measured, spectrum_of_row(row("rings")), row("gradient_histogram"), row("edge_widths"))


def picture_entry(evaluator: Evaluator, name: str, images: Tensor, labels: Tensor, num_grid: int) -> Entry:
    """Pictures from elsewhere, of which nothing but their look is known."""
    column = report.Sampler(name, "student", images[:num_grid].numpy(), 0, 0, note="pictures")
    measured = Measured(name, "pictures", len(images), 0, 0, 0.0, evaluator.measures_of(images, labels))
    rings, gradients, widths = (mean_row(name, images) for name in ("rings", "gradient_histogram", "edge_widths"))
    return Entry(column, measured, spectrum_of_row(rings), gradients, widths)


@torch.no_grad()
def routing_of(role: str, model: Any) -> report.Routing | None:
    """Mean routing weights over depth and t, with inputs made of the model's own one-step estimates and noise.

    None for a model without depth routing.
    """
    if not isinstance(getattr(model, "routing", None), DepthRouting):
        return None
    generator = generator_for(0, "routing")
    device = next(model.parameters()).device
    eps = torch.randn(NUM_ROUTING_SAMPLES, *model.sample_shape, generator=generator).to(device)
    y = to_device(condition_of(model).balanced(NUM_ROUTING_SAMPLES), device)
    noisiest = model.t_range[1]
    x0 = noisiest * (eps - model(noisiest * eps, torch.full((len(eps),), noisiest, device=device), y))
    t_values = torch.linspace(0.02, 0.98, NUM_ROUTING_T)
    by_t = []
    for t in t_values.tolist():
        x_t = (1 - t) * x0 + t * eps
        weights = model.routing_weights(x_t, torch.full((len(eps),), t, device=device), y)
        # Normalise to shares: `count` weights sum to the number of sources, fixed scalars to any value.
        by_t.append([weight_shares(w.mean((1, 2))).cpu().numpy() for w in weights])
    readers = readers_of(model.routing)
    return report.Routing(
        role=role,
        t_values=t_values.numpy(),
        weights=[np.stack([column[i] for column in by_t], axis=1) for i in range(len(readers))],
        reader_names=[reader.name for reader in readers],
        source_names=[reader.sources for reader in readers],
    )


def table(
    entries: Sequence[Entry], data_measures: dict[str, float], halves: dict[str, float]
) -> dict[str, dict[str, report.Cell | None]]:
    """cells[measure][column] for every sampler, for the data (`data_measures`) and for one half of it (`halves`).

    Measures without any value are left out.
    """
    cells: dict[str, dict[str, report.Cell | None]] = {}
    for name in MEASURES:
        row: dict[str, report.Cell | None] = {}
        for e in entries:
            interval = e.measured.measures.get(name)
            row[e.column.name] = _cell(interval, MEASURES[name].has_interval) if interval else None
        row[report.DATA] = report.Cell(data_measures[name]) if name in data_measures else None
        row[report.HALF] = report.Cell(halves[name]) if name in halves else None
        if any(row[e.column.name] for e in entries):
            cells[name] = row
    return cells


def _cell(interval: Interval, has_interval: bool) -> report.Cell:
    known = has_interval and interval.low == interval.low and interval.high == interval.high
    return report.Cell(interval.value, interval.low if known else None, interval.high if known else None)


def measures(names: Iterable[str]) -> list[report.Measure]:
    chosen = [MEASURES[name] for name in names]
    return [report.Measure(m.name, m.kind, m.title, m.unit, m.ideal, m.explanation) for m in chosen]


def spectra(entries: Sequence[Entry], data: ReferenceStatistics | None) -> list[report.Spectrum]:
    curves = [(e.column.name, *e.spectrum) for e in entries]
    if data is not None and data.has_images:
        curves.append((report.DATA, *spectrum_of(data)))
    return [report.Spectrum(name, frequency.numpy(), power.numpy()) for name, frequency, power in curves]


def edges(entries: Sequence[Entry], data: ReferenceStatistics | None) -> list[report.Edges]:
    """Densities of gradient magnitude, in bins wide enough for a readable plot."""
    histograms = [(e.column.name, e.gradients.numpy()) for e in entries]
    if data is not None and data.has_images:
        histograms.append((report.DATA, data.mean("gradient_histogram").numpy()))
    width = BIN_WIDTH * EDGE_BINS
    centres = (np.arange(NUM_BINS // EDGE_BINS) + 0.5) * width
    return [report.Edges(name, centres, h.reshape(-1, EDGE_BINS).sum(1) / width) for name, h in histograms]


def widths(entries: Sequence[Entry], data: ReferenceStatistics | None) -> list[report.Edges]:
    """Densities of the widths of edges."""
    rows = [(e.column.name, e.widths) for e in entries]
    if data is not None and data.has_images:
        rows.append((report.DATA, data.mean("edge_widths")))
    width = MAX_WIDTH / WIDTH_BINS
    centres = (np.arange(WIDTH_BINS) + 0.5) * width
    return [report.Edges(name, centres, (row[2:] / row[0].clamp_min(1e-12) / width).numpy()) for name, row in rows]


def headline(entries: Sequence[Entry], data_measures: dict[str, float]) -> list[tuple[str, str, str]]:
    """The main values: the student against the teacher at many steps and at the same number of steps.

    Empty if there are several students: the table compares them.
    """
    student, *more = (e for e in entries if e.column.role == "student")
    if more:
        return []
    teachers = [e for e in entries if e.column.role == "teacher"]
    lines = []
    reference = max(teachers, key=lambda e: e.column.num_steps)
    lines.append(
        (
            "speed",
            f"{_rate(student) / _rate(reference):.1f} x",
            f"images per second of {student.column.name} against {reference.column.name} "
            f"({_rate(student):.0f} against {_rate(reference):.1f})",
        )
    )
    for name, label in (("frechet", "Fréchet distance"), ("class_agreement", "class agreement")):
        lines += _compared(name, label, student, teachers)
    hf = _value(student, "high_frequency_ratio")
    real = data_measures.get("high_frequency_ratio")
    if hf is not None and real:
        others = [(e.column.name, _value(e, "high_frequency_ratio")) for e in teachers]
        beside = ", ".join(f"{name} {value / real - 1:+.0%}" for name, value in others if value is not None)
        comment = (
            f"{student.column.name}; high frequencies' share of the power against real data's ({beside}); zero is as "
            "real, both signs are a fault"
        )
        lines.append(("detail", f"{hf / real - 1:+.0%}", comment))
    return lines


def _rate(e: Entry) -> float:
    return e.column.images_per_second or math.nan


def _value(e: Entry, name: str) -> float | None:
    interval = e.measured.measures.get(name)
    return interval.value if interval else None


def _compared(name: str, label: str, student: Entry, teachers: Sequence[Entry]) -> list[tuple[str, str, str]]:
    value = _value(student, name)
    if value is None:
        return []
    others = [(e.column.name, _value(e, name)) for e in teachers]
    beside = ", ".join(f"{other} {v:.3f}" for other, v in others if v is not None)
    return [(label, f"{value:.3f}", f"{student.column.name}; {beside}")]


def page(
    title: str,
    subtitle: str,
    entries: Sequence[Entry],
    evaluator: Evaluator,
    condition: Condition,
    *,
    history: Sequence[dict[str, float]] = (),
    routing: Sequence[report.Routing | None] = (),
    config_yaml: str = "",
    seeds: dict[str, int],
) -> report.Report:
    """The report for `report.write_report`."""
    num_grid = min(len(e.column.images) for e in entries)
    labels = condition.groups(condition.balanced(num_grid))
    data_measures = data_values(evaluator.data) if evaluator.data else {}
    cells = table(entries, data_measures, half_values(evaluator.data) if evaluator.data else {})
    strips, width = np.shape(entries[0].column.images)[-1], evaluator.image_shape[-1]
    return report.Report(
        title=title,
        subtitle=subtitle,
        labels=labels.numpy(),
        samplers=[e.column for e in entries],
        frames=strips // width,
        class_names=condition.group_names(),
        headline=headline(entries, data_measures),
        spectra=spectra(entries, evaluator.data),
        edges=edges(entries, evaluator.data),
        widths=widths(entries, evaluator.data),
        measures=measures(cells),
        cells=cells,
        history=history,
        routing=[r for r in routing if r is not None],
        notes=evaluator.notes,
        config_yaml=config_yaml,
        versions=versions(),
        seeds=seeds,
    )
