"""Figures of routing: weights of readers on sources by t, for teacher and student, and the differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FixedLocator, FuncFormatter

from distill.report.page_data import Report, Routing
from distill.report.style import FAINT, INK, new_figure, role_colour, sampler_colours, style_axes

MAX_TIMES = 3
NOT_A_SOURCE = "#e3e5e9"


@dataclass(frozen=True)
class Scale:
    """A colour scale around 1, from 2^-octaves to 2^octaves."""

    label: str
    colours: str
    octaves: int


EVEN_SHARE = Scale("weight over even share", "RdBu_r", 3)
RATIO = Scale("ratio of weights", "PuOr_r", 1)


@dataclass(frozen=True, eq=False)
class HeatmapRow:
    """One row of panels: log2 of the shown values, (readers, sources, n_t); nan where a source is not read."""

    name: str
    octaves: np.ndarray
    routing: Routing
    scale: Scale


def routing_plot(routings: Sequence[Routing], max_times: int = MAX_TIMES) -> Figure:
    """Reader by source at some t; the colour is the weight divided by the even share 1 / n_sources.

    Readers have different numbers of sources, so plain weights would fade with depth. Rows of panels: the first model
    (usually the teacher), each other model, and the ratio of each to the first if both have the same readers, sources
    and times.
    """
    first = routings[0]
    rows = [HeatmapRow(routing.role, _over_even(routing), routing, EVEN_SHARE) for routing in routings]
    for other in routings[1:]:
        if _same_layout(first, other):
            octaves = _over_even(other) - _over_even(first)
            rows.append(HeatmapRow(f"{other.role} / {first.role}", octaves, other, RATIO))
    columns = max(len(chosen_times(row.routing.t_values, max_times)) for row in rows)
    figure = new_figure(0.9 + 3.2 * min(columns, MAX_TIMES), 0.3 + 2.75 * len(rows))
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        image = _draw_row(axes, row, chosen_times(row.routing.t_values, max_times))
        bar = figure.colorbar(image, ax=list(axes), fraction=0.025, pad=0.012, aspect=28)
        bar.set_label(row.scale.label, fontsize=8.5, color=FAINT)
        bar.locator = FixedLocator(range(-row.scale.octaves, row.scale.octaves + 1))
        bar.formatter = FuncFormatter(lambda value, _: f"{2**value:g}×" if value >= 0 else f"1/{2**-value:g}")
        bar.update_ticks()
        bar.ax.tick_params(labelsize=8, length=2, colors=FAINT, labelcolor=INK)
        bar.outline.set_visible(False)
    return figure


def _draw_row(axes: Sequence[Axes], row: HeatmapRow, chosen: Sequence[int]) -> AxesImage:
    routing, limit = row.routing, row.scale.octaves
    sources = all_sources(routing)
    narrow = len(chosen) > MAX_TIMES  # a name and a t do not fit above one panel then
    image = None
    for column, ax in enumerate(axes):
        if column >= len(chosen):
            ax.set_visible(False)
            continue
        index = chosen[column]
        ax.set_facecolor(NOT_A_SOURCE)
        image = ax.imshow(row.octaves[..., index], cmap=row.scale.colours, vmin=-limit, vmax=limit,
                          aspect="auto", interpolation="nearest")  # fmt: skip
        for side in ax.spines.values():
            side.set_visible(False)
        title = f"t = {routing.t_values[index]:.2g}"
        named = column == 0 and not narrow
        ax.set_title(f"{row.name}, {title}" if named else title, fontsize=9.5, color=INK, loc="left",
                     fontweight="bold" if named else "normal")  # fmt: skip
        ax.tick_params(labelsize=7.5, length=0, labelcolor=FAINT)
        _sparse_ticks(ax.xaxis, sources, 3 if narrow else 4)
        _sparse_ticks(ax.yaxis, routing.reader_names if column == 0 else [], 8)
    name = f"{row.name}\n" if narrow and row.name else ""
    axes[0].set_ylabel(f"{name}reader, deeper downwards", fontsize=8.5, color=FAINT)
    axes[0].set_xlabel("source, deeper to the right", fontsize=8.5, color=FAINT)
    assert image is not None
    return image


def shares_plot(report: Report) -> Figure:
    """The embedding's share of the weights, over t (mean over readers) and over depth (mean over t).

    Readers with a single source are left out, because they have no choice.
    """
    colours = sampler_colours(report.samplers)
    figure = new_figure(9.4, 3.3)
    figure.set_layout_engine("constrained")
    over_t, over_depth = figure.subplots(1, 2)
    dotted: dict[str, Any] = {"color": FAINT, "linewidth": 1.1, "linestyle": ":"}
    for place, routing in enumerate(report.routing):
        colour = role_colour(routing.role, colours)
        readers, shares, even = embedding_shares(routing)
        if not len(readers):
            continue
        over_t.plot(routing.t_values, shares.mean(axis=0), color=colour, linewidth=1.9, label=routing.role,
                    marker="o", markersize=3)  # fmt: skip
        over_depth.plot(readers, shares.mean(axis=1), color=colour, linewidth=1.6, label=routing.role)
        if place == 0:
            over_t.axhline(even.mean(), label="even share", **dotted)
            over_depth.plot(readers, even, label="even share", **dotted)
    share = "share of the embedding"
    style_axes(over_t, x="t  (0 = data, 1 = noise)", y=share, title="Over t, mean of readers")
    style_axes(over_depth, x="reader, by depth", y=share, title="Over depth, mean of t")
    over_depth.set_ylim(bottom=0)
    for ax in (over_t, over_depth):
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def embedding_shares(routing: Routing) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weight that each reader gives the embedding, which is the first source of the first reader.

    Returns: numbers, from 1, of the readers that have the embedding among several sources, (R,); their weights,
    (R, n_t); the even share, (R,). R = 0 if there is no such reader, for example with an anchored embedding.
    """
    names = routing.source_names
    embedding = names[0][0] if len(names) and len(names[0]) else None
    readers = [i for i, sources in enumerate(names) if embedding in sources and len(sources) > 1]
    shares = [np.asarray(routing.weights[i])[list(names[i]).index(embedding)] for i in readers if embedding]
    even = [1 / len(names[i]) for i in readers]
    return (
        np.array(readers, dtype=int) + 1,
        np.array(shares).reshape(len(readers), len(routing.t_values)),
        np.array(even),
    )


def all_sources(routing: Routing) -> list[str]:
    """The names of all sources, in order of their first reader, which is the order of depth."""
    return list(dict.fromkeys(name for sources in routing.source_names for name in sources))


def _over_even(routing: Routing) -> np.ndarray:
    """log2 of weight times n_sources, (readers, sources, n_t); nan if a reader does not read a source."""
    place = {name: index for index, name in enumerate(all_sources(routing))}
    table = np.full((len(routing.weights), len(place), len(routing.t_values)), np.nan)
    for reader, (weights, names) in enumerate(zip(routing.weights, routing.source_names, strict=True)):
        # A weight of zero would give minus infinity; a value far below the end of the scale looks the same.
        octaves = np.log2(np.maximum(np.asarray(weights, dtype=float) * len(names), 2.0**-30))
        for name, row in zip(names, octaves, strict=True):
            table[reader, place[name]] = row
    return table


def _same_layout(first: Routing, other: Routing) -> bool:
    return (
        [list(names) for names in first.source_names] == [list(names) for names in other.source_names]
        and np.shape(first.t_values) == np.shape(other.t_values)
        and np.allclose(first.t_values, other.t_values)
    )


def chosen_times(t_values: np.ndarray, max_times: int = MAX_TIMES) -> list[int]:
    """Indices of up to `max_times` t, evenly spaced from the first to the last."""
    count = len(t_values)
    return sorted({round(i) for i in np.linspace(0, count - 1, min(max_times, count))})


def _sparse_ticks(axis: Axis, names: Sequence[str], count: int) -> None:
    """Ticks at about `count` of the names, so that they stay readable."""
    places = range(0, len(names), max(1, -(-len(names) // count)))
    axis.set_ticks(list(places), [names[i] for i in places])
