"""Pictures of a comparison: curves, differences by arm, and profiles over depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distill.comparison.config import Comparison
from distill.comparison.gather import Gathered, Result
from distill.comparison.statistics import paired
from distill.report.style import FAINT, INK, new_figure, style_axes

# Warm colours for DAR, cool colours and dashes for all others, INK for the first baseline. After the palettes of Okabe
# and Ito and of Paul Tol, which colour-blind readers can tell apart.
_DAR = ("#d55e00", "#e69f00", "#cc79a7", "#882255", "#a0522d", "#c9a227")
_OTHERS = ("#0072b2", "#56b4e9", "#009e73", "#332288", "#8a8f98", "#a98bd6", "#117733")
_DASHED = (0, (5, 1.5))


def arm_colours(comparison: Comparison) -> dict[str, str]:
    """One colour per arm, the same in every picture."""
    kinds = {job.arm: job.model.routing.kind for job in comparison.jobs}
    colours = {comparison.config.baselines[0]: INK}
    for arm, kind in kinds.items():
        palette = _DAR if kind == "dar" else _OTHERS
        taken = sum(colour in palette for colour in colours.values())
        colours.setdefault(arm, palette[taken % len(palette)])
    return {arm: colours[arm] for arm in kinds}


def curves_plot(gathered: Gathered) -> Figure:
    """Held-out loss against updates (left) and against time (right), one row per size.

    Mean over seeds of EMA or raw weights, whichever is lower. Time is from the side-by-side timing if available,
    otherwise as recorded.
    """
    sizes = gathered.sizes
    figure, axes = _grid(len(sizes), 2, width=5.0, height=3.5)
    for row, size in zip(axes, sizes, strict=True):
        timed = all((size, arm) in gathered.costs for arm in gathered.comparison.arms)
        style_axes(row[0], x="updates", y="held-out loss", title=size)
        style_axes(row[1], x="seconds, timed side by side" if timed else "seconds, as recorded")
        _curves(row[0], gathered, size, lambda result: [p.step for p in result.trained.curve])
        _curves(row[1], gathered, size, lambda result, timed=timed: _seconds(gathered, result, timed=timed))
    _legend(figure, axes[0][0])
    return figure


def _seconds(gathered: Gathered, result: Result, *, timed: bool) -> list[float]:
    job, curve = result.job, result.trained.curve
    if timed:
        return [p.step * gathered.costs[job.size, job.arm].ms / 1e3 for p in curve]
    return [p.train_s for p in curve]


def _curves(ax: Axes, gathered: Gathered, size: str, x_of: Callable[[Result], Sequence[float]]) -> None:
    for arm, colour in arm_colours(gathered.comparison).items():
        results = gathered.of(size, arm)
        if not results:
            continue
        x = np.mean([x_of(result) for result in results], axis=0)
        y = np.mean([[p.better for p in result.trained.curve] for result in results], axis=0)
        is_first = arm == gathered.comparison.config.baselines[0]
        ax.plot(x, y, marker="o", markersize=2.5, **_line_style(arm, colour, is_first=is_first))
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def differences_plot(gathered: Gathered, quantities: Mapping[str, str]) -> Figure:
    """Difference of each arm from the first baseline, in per cent of its mean: seeds as dots, 95 % interval as a bar.

    quantities: name to title, one column each; one row per size.
    """
    comparison = gathered.comparison
    first, colours = comparison.config.baselines[0], arm_colours(comparison)
    arms = [arm for arm in comparison.arms if arm != first]
    figure, axes = _grid(len(gathered.sizes), len(quantities), width=3.7, height=0.9 + 0.24 * len(arms))
    for row, size in zip(axes, gathered.sizes, strict=True):
        for ax, (quantity, title) in zip(row, quantities.items(), strict=True):
            style_axes(ax, x=f"% of {first}", title=f"{size}: {title}")
            ax.axvline(0, color=INK, linewidth=1.1, zorder=2)
            for place, arm in enumerate(arms):
                _difference(ax, gathered, (quantity, size, arm, first), place, colours[arm])
            ax.set_yticks(range(len(arms)), arms)
            ax.set_ylim(len(arms) - 0.4, -0.6)
            ax.xaxis.set_major_locator(MaxNLocator(5))
            ax.grid(False, axis="y")
        for ax in row[1:]:
            ax.tick_params(labelleft=False)
    return figure


def _difference(ax: Axes, gathered: Gathered, what: tuple[str, str, str, str], place: int, colour: str) -> None:
    quantity, size, arm, first = what
    baseline = gathered.by_seed(quantity, size, first)
    found = paired(gathered.by_seed(quantity, size, arm), baseline)
    if found is None:
        return
    unit = 100 / np.mean(list(baseline.values()))
    if not math.isnan(found.mean.low):
        ax.plot([unit * found.mean.low, unit * found.mean.high], [place, place], color=colour, linewidth=2.2, alpha=0.4)
    ax.plot(unit * found.mean.value, place, marker="|", markersize=9, color=colour, markeredgewidth=2)
    ax.plot([unit * d for d in found.differences], [place] * len(found.differences), "o", color=colour, markersize=3.5)


def symptoms_plot(gathered: Gathered) -> Figure:
    """The three symptoms along depth, mean over seeds, one row per size."""
    sizes = gathered.sizes
    columns = (
        ("hidden_rms", "magnitude: RMS of $z_k$", 0),
        ("gradient_rms", "gradient: RMS of dL/d$v$", 1),
        ("neighbour_cosine", "redundancy: cos($z_{k-1}$, $z_k$)", 1),
    )
    figure, axes = _grid(len(sizes), len(columns), width=3.7, height=3.0)
    for row, size in zip(axes, sizes, strict=True):
        for ax, (name, title, first_block) in zip(row, columns, strict=True):
            style_axes(ax, x="block k", title=f"{size}, {title}")
            _profiles(ax, gathered, size, name, first_block)
            if name != "neighbour_cosine":
                ax.set_yscale("log")
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _legend(figure, axes[0][0])
    return figure


def _profiles(ax: Axes, gathered: Gathered, size: str, name: str, first_block: int) -> None:
    for arm, colour in arm_colours(gathered.comparison).items():
        profiles = [result.measured.symptoms[name] for result in gathered.of(size, arm)]
        if not profiles:
            continue
        mean = np.mean(profiles, axis=0)
        is_first = arm == gathered.comparison.config.baselines[0]
        ax.plot(range(first_block, first_block + len(mean)), mean, **_line_style(arm, colour, is_first=is_first))


def _line_style(arm: str, colour: str, *, is_first: bool) -> dict[str, Any]:
    return {
        "label": arm,
        "color": colour,
        "linestyle": _DASHED if colour in _OTHERS else "-",
        "linewidth": 1.9 if is_first else 1.3,
        "zorder": 4 if is_first else 3,
    }


def _grid(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    figure = new_figure(columns * width, rows * height + 0.6)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).tolist()


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8.5, ncols=6, labelcolor=INK, loc="outside lower center",
                  edgecolor=FAINT)  # fmt: skip
