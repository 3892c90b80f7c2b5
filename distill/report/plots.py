"""Curves: spectra, edges and the training log. Takes numbers, returns matplotlib figures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distill.metrics.spectrum import DETAIL
from distill.report.page_data import DATA, Edges, Report, Spectrum
from distill.report.style import BAND, FAINT, INK, new_figure, sampler_colours, style_axes

SINGLE = "#3b4a63"  # for a single line in a panel
RATIO_RANGE = (1.5, 15.0)  # dB: keeps small differences small, and a huge one from flattening all others


def spectra_plot(report: Report) -> Figure:
    """Power over frequency and, below, each sampler's power relative to the data's in dB.

    The lower panel shows both directions: below 0 dB detail is missing, above 0 dB there is grain. A line that leaves
    the panel differs by more than 15 dB. Without a spectrum of the data, only the upper panel is drawn.
    """
    data = next((spectrum for spectrum in report.spectra if spectrum.name == report.yardstick), None)
    colours = sampler_colours(report.samplers)
    figure = new_figure(4.9, 5.8 if data else 3.4)
    figure.set_layout_engine("constrained")
    if data is None:
        power, ratio = figure.subplots(1, 1), None
    else:
        power, ratio = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
    for ax in (power, ratio):
        if ax is not None:
            ax.axvspan(DETAIL, 0.5**0.5, color=BAND, linewidth=0, zorder=0)
    order = sorted(report.spectra, key=lambda spectrum: spectrum.name != DATA)
    for spectrum in order:
        _spectrum_line(power, spectrum, colours[spectrum.name])
    power.set_yscale("log")
    style_axes(power, y="power")
    label = f"power against {report.yardstick}, dB" if ratio else "power"
    style_axes(ratio or power, x="frequency, cycles per pixel", y=label)
    power.text(0.48, 0.985, "detail", transform=power.get_xaxis_transform(), ha="center", va="top",
               fontsize=9, color=FAINT)  # fmt: skip
    power.legend(frameon=False, fontsize=8.5, loc="lower left", labelcolor=INK)
    if ratio is not None and data is not None:
        _ratio_panel(ratio, data, [s for s in order if s.name != data.name], colours)
    return figure


def _spectrum_line(ax: Axes, spectrum: Spectrum, colour: str) -> None:
    is_data = spectrum.name == DATA
    ax.plot(
        spectrum.frequency,
        _positive(spectrum.power),
        color=colour,
        linewidth=1.6 if is_data else 1.9,
        linestyle=(0, (5, 2.5)) if is_data else "-",
        zorder=4 if is_data else 3,
        label=spectrum.name,
    )


def _ratio_panel(ax: Axes, data: Spectrum, spectra: Sequence[Spectrum], colours: Mapping[str, str]) -> None:
    reference = _positive(data.power)
    ax.axhline(0, color=INK, linewidth=1.4, linestyle=(0, (5, 2.5)), zorder=4)
    extent = 0.0
    for spectrum in spectra:
        decibels = _decibels(spectrum.power, reference)
        ax.plot(data.frequency, decibels, color=colours[spectrum.name], linewidth=1.9, zorder=3)
        extent = max(extent, np.nanmax(np.abs(decibels), initial=0))
    # Symmetric, so that missing and surplus power get the same room.
    extent = 1.12 * float(np.clip(extent, *RATIO_RANGE))
    ax.set_ylim(-extent, extent)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    ax.yaxis.set_major_locator(MaxNLocator(6, symmetric=True))
    name = "the data" if data.name == DATA else data.name
    for y, va, text in ((0.97, "top", f"more than {name}"), (0.03, "bottom", f"less than {name}")):
        ax.text(0.012, y, text, transform=ax.transAxes, fontsize=8.5, color=FAINT, va=va)


def signed(value: float) -> str:
    """Text for ticks around zero: +3, 0, −3."""
    return f"{value:+.3g}".replace("-", "−") if value else "0"


def edges_plot(report: Report) -> Figure:
    """Distribution of gradient magnitudes; sharp edges are at the right end."""
    return _distributions(report, report.edges, "size of the gradient, per pixel", "log")


def widths_plot(report: Report) -> Figure:
    """Distribution of the widths of edges; sharp edges are at the left end."""
    return _distributions(report, report.widths, "width of an edge, pixels", "linear")


def _distributions(report: Report, curves: Sequence[Edges], label: str, scale: str) -> Figure:
    colours = sampler_colours(report.samplers)
    figure = new_figure(4.9, 3.5)
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    for edges in sorted(curves, key=lambda edges: edges.name != DATA):
        _edge_line(ax, edges, colours[edges.name])
    ax.set_yscale(scale)
    style_axes(ax, x=label, y="density")
    ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _edge_line(ax: Axes, edges: Edges, colour: str) -> None:
    is_data = edges.name == DATA
    style = (0, (5, 2.5)) if is_data else "-"
    density = _positive(edges.density)
    ax.plot(edges.magnitude, density, color=colour, linewidth=1.8, linestyle=style, label=edges.name,
            zorder=4 if is_data else 3)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One picture of the training log; each key that matches is one line."""

    name: str
    title: str
    keys: str  # a regular expression that matches the whole key
    log: bool = False
    reference: float | None = None  # dotted line: the value of the teacher
    caption: str = ""
    named: bool = False  # show a legend even for one line, because the title does not name it


HIGH_FREQUENCY = "high-frequency"
# `student/loss` is left out on purpose: only the gradient of this surrogate loss has a meaning.
PANELS = (
    Panel("student-gradient", "Student: gradient norm", r"student/grad_norm", log=True,
          caption="The gradient is normalised: its size is no sign of convergence, but jumps are a warning."),
    Panel("fake-score-loss", "Critic: loss", r"fake_score/loss", log=True,
          caption="The critic follows a moving student; a steady rise means that it falls behind."),
    Panel("critic-lag", "Critic: lag", r"critic_lag|fake_score/lag", reference=1.0,
          caption="Critic's loss over the teacher's on the same x_t. Growing: the critic cannot follow."),
    Panel("x0-gap", "|x0 fake − x0 teacher| by t", r"x0_gap/.+", log=True,
          caption="How far critic and teacher disagree, from t near 0 (dark) to t near 1 (light)."),
    Panel("std-drift", "Drift of the standard deviation", r"((last_step|earlier_steps)/)?std_drift", reference=0.0,
          caption="Of the student's images against the teacher's. Above 0: over-saturated; below: washed out."),
    Panel("lag-by-step", "Critic: lag, by step", r"(last_step|earlier_steps)/fake_score/lag", reference=1.0, named=True,
          caption="As above, for samples of the student's last step, which a user gets, and of those before it."),
    Panel("gap-by-step", "|x0 fake − x0 teacher|, by step", r"(last_step|earlier_steps)/x0_gap", log=True, named=True,
          caption="For samples of the student's last step, and of those before it."),
    Panel(HIGH_FREQUENCY, "High-frequency share", r"high_frequency_ratio(/.+)?",
          caption="Of the power of the student's images. Less than the data (dotted) is blur, more is grain."),
    Panel("watch-score", "Looks: score", r"watch/score",
          caption="How far pictures are from the data, mean over the measures of the table; the lowest is the best."),
    Panel("watch-away", "Looks: away from the data", r"watch/away/.+", reference=0.0,
          caption="Each measure, in the spread of one picture of the teacher to the next; 0 is where it should be."),
    Panel("gradients", "Other gradient norms", r"(?!student/).+/grad_norm", log=True, named=True),
    Panel("losses", "Other losses", r"(?!(fake_score|student)/loss$)(.+/)?loss(/.+)?", log=True, named=True),
)  # fmt: skip


def training_plots(
    history: Sequence[Mapping[str, Any]], high_frequency_of_data: float | None = None
) -> dict[Panel, Figure]:
    """The panels for which the log has at least two finite values, over `step`.

    high_frequency_of_data: draws a dotted line beside the student's share of high frequencies.
    Records need not have every key. Values that are not finite leave a gap, and the title gives their number.
    """
    keys = list(dict.fromkeys(key for record in history for key in record))
    figures = {}
    for panel in PANELS:
        matching = sorted((key for key in keys if re.fullmatch(panel.keys, key)), key=_natural)
        lines = {key: line for key in matching if (line := _line(history, key)) is not None}
        if lines:
            reference = high_frequency_of_data if panel.name == HIGH_FREQUENCY else panel.reference
            figures[panel] = _training_plot(panel, lines, reference)
    return figures


def training_span(history: Sequence[Mapping[str, Any]]) -> tuple[int, float | None, float]:
    """The last step of the log, the seconds elapsed by then, None if the log does not record them, and the share of
    them that looks took."""
    steps, seconds, looks = (
        [record[name] for record in history if _is_number(record.get(name))]
        for name in ("step", "elapsed_s", "probe_s")
    )
    elapsed = max(seconds, default=None)
    return max(steps, default=0), elapsed, sum(looks) / (elapsed + looks[-1]) if elapsed and looks else 0.0


def _line(history: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray] | None:
    pairs = [
        (record["step"], record[key])
        for record in history
        if _is_number(record.get("step")) and _is_number(record.get(key))
    ]
    steps, values = np.array(pairs, dtype=float).reshape(-1, 2).T
    return (steps, values) if np.isfinite(values).sum() >= 2 else None


def _training_plot(panel: Panel, lines: Mapping[str, tuple[np.ndarray, np.ndarray]], reference: float | None) -> Figure:
    figure = new_figure(3.7, 2.6)
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    values = np.concatenate([values for _, values in lines.values()])
    lost = int((~np.isfinite(values)).sum())
    values = values[np.isfinite(values)]
    # A log axis needs a range of more than a third of a decade; otherwise it has few ticks.
    log = panel.log and values.min() > 0 and values.max() > 2 * values.min()
    shades = [SINGLE] if len(lines) == 1 else colormaps["viridis"](np.linspace(0, 0.85, len(lines)))
    for shade, (key, (steps, line)) in zip(shades, lines.items(), strict=True):
        label = re.sub(r"^x0_gap/(bin)?", "t bin " if "/bin" in key else "", key)
        label = re.sub(r"^(last|earlier)_(steps?)/.*", r"\1 \2", label)
        label = label.removeprefix("watch/away/").replace("_", " ") if key.startswith("watch/") else label
        _trend(ax, steps, np.where(np.isfinite(line), line, np.nan), shade, label)
    if reference is not None:
        ax.axhline(reference, color=FAINT, linewidth=1.1, linestyle=":")
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
    style_axes(ax, x="step", title=panel.title + (f"  ({lost} not finite)" if lost else ""))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if len(lines) > 1 or panel.named:
        figure.legend(frameon=False, fontsize=8, ncols=min(3, len(lines)), labelcolor=INK,
                      loc="outside lower center", handlelength=1, columnspacing=1)  # fmt: skip
    return figure


def _trend(ax: Axes, steps: np.ndarray, line: np.ndarray, colour: Any, label: str) -> None:
    """The line as logged and, if it is long enough, a running median on top to show the trend."""
    window = len(line) // 25
    if window < 3:
        ax.plot(steps, line, color=colour, linewidth=1.5, label=label)
        return
    ax.plot(steps, line, color=colour, linewidth=0.6, alpha=0.3)
    padded = np.pad(line, window // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * (window // 2) + 1)
    known = np.isfinite(windows).any(axis=1)
    median = np.full(len(line), np.nan)
    median[known] = np.nanmedian(windows[known], axis=1)
    ax.plot(steps, median, color=colour, linewidth=1.6, label=label)


def _positive(values: np.ndarray) -> np.ndarray:
    """Replace zero and negative power, which has no logarithm, by nan, which leaves a gap in the line."""
    values = np.asarray(values, dtype=float)
    return np.where(values > 0, values, np.nan)


def _decibels(power: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return 10 * np.log10(_positive(power) / reference)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts bin2 before bin10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", key)]
