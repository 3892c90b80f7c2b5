"""The table of measures: formatted values, and which sampler is better at equal steps.

This module measures nothing. It calls a comparison clear only if the two intervals do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.report.page_data import DATA, HALF, Cell, Measure, Report, Sampler

MISSING = "–"  # an en dash


@dataclass(frozen=True)
class TableCell:
    """The content of one cell. `mark`: "clear" or "slight" if this sampler is the best at its number of steps."""

    value: str
    interval: str
    mark: str = ""


@dataclass(frozen=True)
class TableRow:
    measure: Measure
    arrow: str
    cells: list[TableCell]


@dataclass(frozen=True)
class Verdict:
    """Student against teacher at equal steps, as titles of measures; `open` also says which one is ahead."""

    student: str
    teacher: str
    better: list[str]
    worse: list[str]
    open: list[str]


ARROWS = {"lower": "↓", "higher": "↑", "as data": "≈", "none": ""}


def table_columns(report: Report) -> list[str]:
    """The names of the samplers, preceded by the data if any measure has a value for it."""
    known = [name for name in (DATA, HALF) if any(row.get(name) is not None for row in report.cells.values())]
    return known + [sampler.name for sampler in report.samplers]


def table_rows(report: Report) -> list[TableRow]:
    """One row per measure, with a cell for each of `table_columns`."""
    rows = []
    for measure in report.measures:
        marks = _marks(report, measure)
        cells = [
            TableCell(*format_cell(_cell(report, measure, column)), marks.get(column, ""))
            for column in table_columns(report)
        ]
        rows.append(TableRow(measure, ARROWS[measure.ideal], cells))
    return rows


def format_cell(cell: Cell | None) -> tuple[str, str]:
    """Value and interval as text, e.g. ("0.523", "[0.49, 0.56]"); an en dash if nothing was measured.

    The limits have as many decimals as make half the interval 3 to 30 units of the last digit;
    the value has one more if those are fewer than ten units.
    """
    if cell is None:
        return MISSING, ""
    if cell.low is None or cell.high is None:
        return format_number(cell.value), ""
    half = (cell.high - cell.low) / 2
    if not math.isfinite(half) or half < 1e-6:
        return format_number(cell.value), f"[{format_number(cell.low)}, {format_number(cell.high)}]"
    ends = max(0, -math.floor(math.log10(half / 3)))
    interval = f"[{_fixed(cell.low, ends)}, {_fixed(cell.high, ends)}]"
    return _fixed(cell.value, ends + (half * 10**ends < 9.5)), interval


def format_number(value: float) -> str:
    """Three significant digits, without an exponent if that is short; "not finite" for values that are not finite."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    return _fixed(value, max(0, 2 - exponent)) if -4 <= exponent < 6 else f"{value:.2e}".replace("-", "−")


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}" if math.isfinite(value) else str(value)
    return text.replace("-", "−")


def verdicts(report: Report) -> list[Verdict]:
    """Every student against every teacher with the same number of steps, over the measures that both have."""
    pairs = [
        (student, teacher)
        for student in report.samplers
        for teacher in report.samplers
        if student.role == "student" and teacher.role == "teacher" and student.num_steps == teacher.num_steps
    ]
    found = []
    for student, teacher in pairs:
        verdict = Verdict(student.name, teacher.name, [], [], [])
        for measure in report.measures:
            order = compare(report, measure, student.name, teacher.name)
            if order is not None:
                ahead = _best(report, measure, [student.name, teacher.name])
                remark = f" ({ahead[0]} ahead)" if ahead else " (equal)"
                side = [verdict.open, verdict.better, verdict.worse][order]
                side.append(measure.title + (remark if order == 0 else ""))
        if verdict.better or verdict.worse or verdict.open:
            found.append(verdict)
    return found


def compare(report: Report, measure: Measure, first: str, second: str) -> int | None:
    """1 if the first is clearly better, -1 if the second is, 0 if the intervals overlap.

    Without an interval nothing is clear, which counts as overlap; the value of the data counts as exact.
    None: one of the values is missing, or that of the data if it is needed.
    """
    spans = [_lower_is_better(report, measure, name) for name in (first, second)]
    if spans[0] is None or spans[1] is None:
        return None
    (_, low_1, high_1), (_, low_2, high_2) = spans[0], spans[1]
    if any(cell is None or cell.low is None for cell in (_cell(report, measure, n) for n in (first, second))):
        return 0
    return int(high_1 < low_2) - int(high_2 < low_1)


def _lower_is_better(report: Report, measure: Measure, column: str) -> tuple[float, float, float] | None:
    """A number of which less is better: its value, lower limit and upper limit."""
    cell = _cell(report, measure, column)
    if cell is None or not math.isfinite(cell.value):
        return None
    low = cell.value if cell.low is None else cell.low
    high = cell.value if cell.high is None else cell.high
    if measure.ideal == "lower":
        return cell.value, low, high
    if measure.ideal == "higher":
        return -cell.value, -high, -low
    data = _cell(report, measure, report.yardstick) if measure.ideal == "as data" else None
    if data is None or not math.isfinite(data.value):
        return None
    ends = abs(low - data.value), abs(high - data.value)
    nearest = 0.0 if low <= data.value <= high else min(ends)
    return abs(cell.value - data.value), nearest, max(ends)


def _marks(report: Report, measure: Measure) -> dict[str, str]:
    """The best sampler of each group of equal steps that has a student and at least one more sampler."""
    groups: dict[int, list[Sampler]] = {}
    for sampler in report.samplers:
        groups.setdefault(sampler.num_steps, []).append(sampler)
    marks = {}
    for group in groups.values():
        best = _best(report, measure, [sampler.name for sampler in group])
        if best is not None and any(sampler.role == "student" for sampler in group):
            name, is_clear = best
            marks[name] = "clear" if is_clear else "slight"
    return marks


def _best(report: Report, measure: Measure, names: Sequence[str]) -> tuple[str, bool] | None:
    """The name with the best value and whether it is clearly best; None for a tie or fewer than two values."""
    ranked = sorted((span[0], name) for name in names if (span := _lower_is_better(report, measure, name)) is not None)
    if len(ranked) < 2 or ranked[0][0] == ranked[1][0]:
        return None
    best = ranked[0][1]
    return best, all(compare(report, measure, best, name) == 1 for _, name in ranked[1:])


def _cell(report: Report, measure: Measure, column: str) -> Cell | None:
    return report.cells.get(measure.name, {}).get(column)
