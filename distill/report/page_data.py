"""The content of a report as plain data: the caller fills it in, and the report only draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

HALF = "half of the data"  # the name of the column with what one half of it is beside the other
DATA = "data"  # the name of the real data in spectra, edges and the columns of the table
MAX_PER_ROLE = 8  # the number of colours that readers can tell apart


@dataclass(frozen=True, eq=False)
class Sampler:
    """One row of the pictures and one column of the table, e.g. "student, 4 steps".

    images: (N, C, H, W) float in [-1, 1], C = 1 or 3. Image i of every sampler was made from the same
        noise and the same label.
    nfe: network evaluations per image; with guidance, one step takes two.
    note: half a sentence about how the images were made, e.g. "Euler, guidance 2".
    """

    name: str
    role: Literal["teacher", "student"]
    images: np.ndarray
    num_steps: int
    nfe: int
    images_per_second: float | None = None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Radially averaged power of a set of images. `name` is the name of a sampler, or `DATA`.

    frequency: (K,) cycles per pixel, ascending; power: (K,).
    """

    name: str
    frequency: np.ndarray
    power: np.ndarray


@dataclass(frozen=True, eq=False)
class Edges:
    """A distribution, of gradients over pixels or of widths over edges. `name` is the name of a sampler, or `DATA`.

    magnitude: (K,) size of the gradient or width, ascending; density: (K,) per unit of magnitude.
    """

    name: str
    magnitude: np.ndarray
    density: np.ndarray


@dataclass(frozen=True)
class Measure:
    """One row of the table. `help` says in a sentence or two what it measures and what changes it.

    ideal: "lower", "higher", or "as data": the closer to the value of the data, the better; "none": it informs.
    """

    name: str
    kind: str
    title: str
    unit: str
    ideal: Literal["lower", "higher", "as data", "none"]
    help: str


@dataclass(frozen=True)
class Cell:
    """A value and its interval, if known."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Routing:
    """Routing weights of one model, averaged over images and tokens.

    role: the owner: "teacher" or "student", or a sampler's name if several students are compared.
    t_values: (n_t,) times in [0, 1], 0 = data, ascending.
    weights: per reader (n_sources, n_t); each column sums to 1. No sources: n_sources = 0.
    reader_names: one per reader, in order of depth.
    source_names: per reader the names of its sources. The first source of the first reader is the embedding.
    """

    role: str
    t_values: np.ndarray
    weights: Sequence[np.ndarray]
    reader_names: Sequence[str]
    source_names: Sequence[Sequence[str]]


class Headline(NamedTuple):
    """One main result: its title, its value, and what it means."""

    label: str
    value: str
    comment: str


@dataclass(frozen=True, eq=False)
class Crop:
    """One picture of several samplers. rule: how it was chosen. images: (C, H, W) each; edges: (H, W), steepness."""

    rule: str
    names: Sequence[str]
    images: Sequence[np.ndarray]
    edges: Sequence[np.ndarray]


@dataclass(frozen=True)
class TextTable:
    """A table of text. note: what its columns are."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, eq=False, kw_only=True)
class Report:
    """The whole content of the page. Empty fields are left out of the page.

    labels: (N,) class of each grid image; class_names: by class. frames: of a video, how many an image shows side by
        side; 1 for pictures.
    cells: cells[measure.name][column], where a column is a sampler's name, `DATA` or `HALF`; None: not measured.
    edges, widths: distributions of gradients and of the widths of edges.
    answers: what is compared with what, and in words what was found, line by line.
    tables: of the comparison. crops: pictures side by side.
    history: records of metrics.jsonl, in order. looks: what the student was like on the way. events: what guards did.
    notes: stand-ins and warnings that a reader must know to judge the values.
    """

    title: str
    subtitle: str
    labels: np.ndarray
    samplers: Sequence[Sampler]
    class_names: Sequence[str] | None = None
    frames: int = 1
    headline: Sequence[tuple[str, str, str]] = ()
    answers: Sequence[tuple[str, Sequence[str]]] = ()
    tables: Sequence[TextTable] = ()
    crops: Sequence[Crop] = ()
    spectra: Sequence[Spectrum] = ()
    edges: Sequence[Edges] = ()
    widths: Sequence[Edges] = ()
    measures: Sequence[Measure] = ()
    cells: Mapping[str, Mapping[str, Cell | None]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    looks: TextTable | None = None
    events: Sequence[str] = ()
    routing: Sequence[Routing] = ()
    notes: Sequence[str] = ()
    config_yaml: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def yardstick(self) -> str:
        """What measures with the ideal "as data" are compared with: `DATA`, or without data the first sampler."""
        has_data = any(row.get(DATA) for row in self.cells.values()) or any(s.name == DATA for s in self.spectra)
        return DATA if has_data else self.samplers[0].name


def check_report(report: Report) -> None:
    """Reject content that cannot be shown truthfully.

    Raises: ValueError, which names the sampler, curve, measure or reader, what it has and what it should have.
    """
    _check_samplers(report)
    columns = {DATA, HALF, *(sampler.name for sampler in report.samplers)}
    for kind, curves in (("spectrum", report.spectra), ("edges", report.edges), ("widths", report.widths)):
        names = [curve.name for curve in curves]
        if unknown := sorted(set(names) - columns):
            raise ValueError(f"{kind} of {unknown[0]!r}: no such sampler; there are {sorted(columns)}")
        if len(set(names)) < len(names):
            raise ValueError(f"{kind}: a name appears twice in {names}")
    _check_curves(report)
    _check_cells(report, columns)
    for routing in report.routing:
        _check_routing(routing)


def check_columns(columns: Sequence[tuple[str, str]]) -> None:
    """Reject samplers, given as (name, role), that do not fit on a page; needs no drawn images.

    Raises: ValueError if there are none, two have the same name, or too many have the same role.
    """
    if not columns:
        raise ValueError("a report needs at least one sampler")
    names = [name for name, _ in columns]
    if len(set(names)) < len(names) or {DATA, HALF} & set(names):
        raise ValueError(f"samplers need different names, none of them {DATA!r} or {HALF!r}; got {names}")
    for role in ("teacher", "student"):
        count = sum(found == role for _, found in columns)
        if count > MAX_PER_ROLE:
            raise ValueError(f"{count} samplers with role {role!r}; a report shows at most {MAX_PER_ROLE}")


def _check_samplers(report: Report) -> None:
    check_columns([(sampler.name, sampler.role) for sampler in report.samplers])
    first = report.samplers[0]
    pictures = [(sampler.name, np.asarray(sampler.images)) for sampler in report.samplers]
    expected = pictures[0][1].shape
    if len(expected) != 4 or expected[1] not in (1, 3) or 0 in expected:
        raise ValueError(f"images of {first.name!r} have shape {expected}; expected (N, 1 or 3, H, W)")
    for name, images in pictures:
        if images.shape != expected:
            raise ValueError(f"images of {name!r} have shape {images.shape}, those of {first.name!r} {expected}")
        if not np.isfinite(images).all():
            count = (~np.isfinite(images)).sum()
            raise ValueError(f"images of {name!r} hold {count} values that are not finite")
    labels = np.asarray(report.labels)
    if labels.shape != expected[:1]:
        raise ValueError(f"labels have shape {labels.shape}; expected {expected[:1]}, one per image")
    if report.class_names is not None and labels.max() >= len(report.class_names):
        raise ValueError(f"label {labels.max()} has no name: there are {len(report.class_names)} class names")


def _check_curves(report: Report) -> None:
    data = next((spectrum for spectrum in report.spectra if spectrum.name == DATA), None)
    for spectrum in report.spectra:
        frequency = np.asarray(spectrum.frequency)
        if np.shape(spectrum.power) != frequency.shape:
            shapes = f"power has shape {np.shape(spectrum.power)}, frequency {frequency.shape}"
            raise ValueError(f"spectrum of {spectrum.name!r}: {shapes}")
        if data is not None and not np.array_equal(frequency, data.frequency):
            raise ValueError(
                f"spectrum of {spectrum.name!r} lies on {frequency.shape} frequencies that are not "
                f"the {np.shape(data.frequency)} of the data"
            )
    for edges in report.edges:
        if np.shape(edges.magnitude) != np.shape(edges.density):
            raise ValueError(
                f"edges of {edges.name!r}: magnitude has shape {np.shape(edges.magnitude)}, "
                f"density {np.shape(edges.density)}"
            )


def _check_cells(report: Report, columns: set[str]) -> None:
    measures = {measure.name for measure in report.measures}
    if unknown := sorted(set(report.cells) - measures):
        raise ValueError(f"cells of {unknown[0]!r}: no such measure; there are {sorted(measures)}")
    for name, row in report.cells.items():
        if unknown := sorted(set(row) - columns):
            raise ValueError(f"cells of {name!r} name {unknown[0]!r}: no such sampler; there are {sorted(columns)}")
        for column, cell in row.items():
            if cell is not None and (cell.low is None) != (cell.high is None):
                raise ValueError(f"{name!r} of {column!r} has half an interval: {cell}")
            if cell is not None and cell.low is not None and cell.high is not None and cell.low > cell.high:
                raise ValueError(f"{name!r} of {column!r} has an interval upside down: {cell}")


def _check_routing(routing: Routing) -> None:
    counts = (len(routing.weights), len(routing.reader_names), len(routing.source_names))
    if len(set(counts)) > 1:
        raise ValueError(f"routing of {routing.role!r}: weights, reader_names and source_names count {counts} readers")
    for reader, weights, names in zip(routing.reader_names, routing.weights, routing.source_names, strict=True):
        expected = (len(names), len(routing.t_values))
        if np.shape(weights) != expected:
            raise ValueError(
                f"routing of {routing.role!r}, reader {reader!r}: weights have shape {np.shape(weights)}; "
                f"expected {expected}, sources by times"
            )
