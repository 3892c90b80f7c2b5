"""Figures of a diagnosis. Models share their axes; shaded bands are two standard errors.

Colours of models are from Okabe and Ito's palette, those of t run from dark (data) to light (noise) in viridis.
Colour-blind readers can tell both apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from dar.diagnostics import EFFECTS
from distill.diagnosis.results import Diagnosis, ModelDiagnosis, Profile
from distill.report.diagnosis.findings import NUM_ERRORS, relative_cost
from distill.report.heatmaps import NOT_A_SOURCE, chosen_times, routing_plot
from distill.report.page_data import Routing
from distill.report.style import FAINT, INK, new_figure, style_axes

MODEL_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
EFFECT_COLOURS = dict(zip(EFFECTS, ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#c9ccd1"), strict=True))
REACH = {
    "embedding_share": ("embedding", "#e69f00"),
    "first_half_share": ("first half of depth", "#56b4e9"),
    "second_half_share": ("second half of depth", "#0072b2"),
}
WIDTH = 10.0  # inches; the page shows it at full width
COLUMNS = 3
LINES_BY_T = 5
HEATMAPS_BY_T = 5
LINEAR_COST = 0.01  # as a share of the loss: below this the scale of costs is linear
COST_ENDS = (0.1, 1.0, 10.0)  # possible ends of the scale
DASHED = (0, (3, 1.5))
STYLES = ("-", DASHED, ":")  # of the last sublayer of a block, the one before it, ..
SUBLAYERS = {
    "attn": "attention",
    "attn+cross": "self and cross attention",
    "cross": "cross attention",
    "mlp": "MLP",
}
DEPTH = "depth, in blocks"


def colours_of(diagnosis: Diagnosis) -> dict[str, str]:
    return {model.name: colour for model, colour in zip(diagnosis.models, MODEL_COLOURS, strict=False)}


@dataclass(frozen=True, eq=False)
class _Panel:
    title: str
    draw: Callable[[Axes], None]


def depth_plot(diagnosis: Diagnosis, name: str) -> Figure:
    """One measure over depth: one panel with the models' means over t, then one panel per model by t."""
    profiles = {model.name: model.profiles[name] for model in diagnosis.models if name in model.profiles}
    first = next(iter(profiles.values()))
    colours = colours_of(diagnosis)
    panels = [
        _Panel(_titled(diagnosis, model, "by t"), _by_t(profile, diagnosis.t_values))
        for model, profile in profiles.items()
    ]
    counted = [model for model in diagnosis.models if model.routing] if name == "effective_number" else []
    panels.insert(0, _Panel("mean over t", _means(profiles, colours, counted)))
    log = first.log and all((profile.mean > 0).any() for profile in profiles.values())
    figure = _grid(panels, y=first.title + (f", {first.unit}" if first.unit else ""), log=log)
    _legend_below(figure, figure.axes[1])
    return figure


def _titled(diagnosis: Diagnosis, model: str, title: str) -> str:
    return f"{model}, {title}" if len(diagnosis.models) > 1 else title


def _grid(panels: Sequence[_Panel], *, y: str, log: bool = False) -> Figure:
    """Panels in rows of up to three, with shared axes."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(WIDTH, 0.6 + 2.75 * rows)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for index, (ax, panel) in enumerate(zip(axes.flat, panels, strict=False)):
        panel.draw(ax)
        if log:
            _log_axis(ax)
        last = index + columns >= len(panels)
        style_axes(ax, x=DEPTH if last else "", y=y if index % columns == 0 else "", title=panel.title)
        ax.tick_params(labelbottom=last)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


def _legend_below(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False, fontsize=8.5, labelcolor=INK,
                  handlelength=1.6, columnspacing=1.4)  # fmt: skip


def _log_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    narrow = high < 100 * low  # decades alone would leave the axis without ticks
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if narrow else (1,)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _means(
    profiles: Mapping[str, Profile], colours: Mapping[str, str], counted: Sequence[ModelDiagnosis]
) -> Callable[[Axes], None]:
    """Draws means over t, one line per model; for `counted` models also the number of available sources."""

    def draw(ax: Axes) -> None:
        for name, profile in profiles.items():
            mean, error = profile.mean_over_t
            label = name if len(profiles) > 1 else ""
            _profile_lines(ax, profile, mean, NUM_ERRORS * error, colours[name], label)
        for model in counted:
            assert model.routing is not None
            counts = [len(sources) for sources in model.routing.source_names]
            colour = colours[model.name] if len(counted) > 1 else FAINT
            label = None if model is not counted[0] else "sources there are"
            positions = model.profiles["effective_number"].positions
            ax.plot(positions, counts, color=colour, linewidth=1, linestyle=":", label=label)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False, fontsize=8, labelcolor=INK, handlelength=1.2, labelspacing=0.25)

    return draw


def _by_t(profile: Profile, t_values: np.ndarray) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        chosen = chosen_times(t_values, LINES_BY_T)
        for index, shade in zip(chosen, colormaps["viridis"](np.linspace(0, 0.9, len(chosen))), strict=True):
            band = NUM_ERRORS * profile.standard_error[index]
            _profile_lines(ax, profile, profile.mean[index], band, shade, f"t = {t_values[index]:.2g}")
        kinds = _kinds(profile)
        if len(kinds) > 1:
            for kind, style in zip(reversed(kinds), STYLES, strict=False):
                label = SUBLAYERS.get(kind, kind)
                ax.plot([], [], color=FAINT, linestyle=style, linewidth=1.5, label=label)

    return draw


def _profile_lines(ax: Axes, profile: Profile, mean: np.ndarray, band: np.ndarray, colour: object, label: str) -> None:
    """One line with a band. Sublayer outputs get a line for each kind of sublayer, and a point for the embedding.

    Kinds of sublayers differ so much that a single line would zigzag.
    """
    x = profile.positions
    kinds = _kinds(profile)
    if not kinds:
        _line(ax, x, mean, band, colour, label)
        return
    ax.plot(x[:1], mean[:1], color=colour, marker="D", markersize=4, linestyle="")
    for place, style in zip(range(len(kinds), 0, -1), STYLES, strict=False):
        rows = slice(place, None, len(kinds))
        _line(ax, x[rows], mean[rows], band[rows], colour, label if style == "-" else "", style)


def _kinds(profile: Profile) -> list[str]:
    """Of sublayers, in the order of a block, where a profile is of their outputs: "attn", "mlp"."""
    return (
        list(dict.fromkeys(name.rpartition(" ")[0] for name in profile.places[1:])) if profile.axis == "source" else []
    )


def _line(
    ax: Axes, x: np.ndarray, mean: np.ndarray, band: np.ndarray, colour: object, label: str, style: object = "-"
) -> None:
    ax.plot(x, mean, color=colour, linewidth=1.5, marker="o", markersize=2, label=label or None, linestyle=style)
    # A logarithmic axis cannot show values below zero.
    low = np.where(mean > 0, np.maximum(mean - band, 1e-9 * mean), mean - band)
    ax.fill_between(x, low, mean + band, color=colour, alpha=0.2, linewidth=0)


def similarity_plot(diagnosis: Diagnosis) -> Figure:
    """Cosine similarity of sublayer outputs, with proposed chunks (solid) and uniform ones (dashed)."""
    models = diagnosis.models
    columns = min(len(models), COLUMNS)
    rows = -(-len(models) // columns)
    figure = new_figure(max(3.4 * columns + 0.8, 4.6), 3.4 * rows)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    # The diagonal is always 1, so the colour scale ends at the largest other value.
    limit = max(float(np.abs(model.similarity - np.diag(np.diag(model.similarity))).max()) for model in models)
    image = None
    for ax, model in zip(axes, models, strict=False):
        end = len(model.similarity) / model.per_block
        image = ax.imshow(model.similarity, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, end, end, 0))
        for lengths, style, colour in ((model.chunks.uniform, DASHED, FAINT), (model.chunks.lengths, "-", INK)):
            edges = np.concatenate([[0], np.cumsum(lengths)]) / model.per_block
            for first, last in pairwise(edges):
                corners = [first, last, last, first, first], [first, first, last, last, first]
                ax.plot(*corners, color=colour, linewidth=1.1, linestyle=style)
        style_axes(ax, x=DEPTH, y=DEPTH, title=model.name if len(models) > 1 else "")
        ax.grid(False)
        ax.set_xlim(0, end)
        ax.set_ylim(end, 0)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
    for ax in axes[len(models) :]:
        ax.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=list(figure.axes), fraction=0.03, pad=0.02)
    bar.set_label("cosine", fontsize=8.5, color=FAINT)
    bar.ax.tick_params(labelsize=7.5, length=2, colors=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def removal_plot(diagnosis: Diagnosis) -> Figure:
    """Relative rise of the loss without a sublayer, by sublayer and t; white if it cannot be told from zero."""
    models = diagnosis.models
    figure = new_figure(WIDTH, 0.6 + 1.75 * len(models))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(models), 1, squeeze=False, sharex=True)[:, 0]
    largest = max(float(np.abs(relative_cost(model)[0]).max()) for model in models)
    end = next((end for end in COST_ENDS if end >= largest), COST_ENDS[-1])
    norm = SymLogNorm(LINEAR_COST, vmin=-end, vmax=end, linscale=0.5)
    image = None
    for ax, model in zip(axes, models, strict=True):
        cost, error = relative_cost(model)
        visible = np.where(np.abs(cost) > NUM_ERRORS * error, cost, np.nan)
        positions, half = model.profiles["removal_cost"].positions, 0.5 / model.per_block
        edges = np.append(positions - half, positions[-1] + half)
        ax.axvspan(edges[0], edges[-1], color="white", linewidth=0, zorder=0)
        image = ax.pcolormesh(edges, _edges(diagnosis.t_values), visible, cmap="RdBu_r", norm=norm)
        last = model is models[-1]
        style_axes(ax, y="t", x=_in_order(models) if last else "", title=model.name if len(models) > 1 else "")
        ax.set_facecolor(NOT_A_SOURCE)  # beyond the depth of this model
        ax.grid(False)
        ax.xaxis.set_major_locator(MaxNLocator(16, integer=True))
    assert image is not None
    bar = figure.colorbar(image, ax=list(axes), fraction=0.03, pad=0.012, aspect=14 * len(models))
    ticks = [cost for cost in (LINEAR_COST, *COST_ENDS) if cost <= end]
    bar.locator = FixedLocator([*(-cost for cost in ticks), *ticks])
    bar.formatter = FuncFormatter(lambda value, _: f"{100 * value:+g} %".replace("-", "−"))
    bar.minorlocator = NullLocator()
    bar.update_ticks()
    bar.set_label("change of the loss", fontsize=8.5, color=FAINT)
    bar.ax.tick_params(labelsize=7.5, length=2, colors=FAINT, labelcolor=INK)
    bar.outline.set_visible(False)
    return figure


def _in_order(models: Sequence[ModelDiagnosis]) -> str:
    """The label of an axis along sublayers, which says how they follow on each other where that is the same for all."""
    kinds = {tuple(model.sublayers) for model in models}
    names = [SUBLAYERS.get(kind, kind) for kind in models[0].sublayers]
    return f"{DEPTH} ({', then '.join(names)})" if len(kinds) == 1 and len(names) > 1 else DEPTH


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges halfway between the centres."""
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def probe_plot(diagnosis: Diagnosis) -> Figure:
    """R^2 over depth, one line per model; the band is the spread over splits."""
    colours = colours_of(diagnosis)
    figure = new_figure(0.62 * WIDTH, 3.0)
    figure.set_layout_engine("constrained")
    ax = figure.subplots()
    for model in diagnosis.models:
        probe = model.probe
        _line(ax, np.arange(len(probe.r2)), probe.r2, probe.spread, colours[model.name], model.name)
    ax.axhline(1, color=FAINT, linewidth=1, linestyle=":")
    style_axes(ax, x=DEPTH, y="R² of t on held-out images")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(diagnosis.models) > 1:
        ax.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return figure


def weights_plot(diagnosis: Diagnosis, stream: str) -> Figure:
    """Heatmaps of a stream's weights divided by the even share, by t, one row of panels per model."""
    routings = []
    for model in diagnosis.models:
        routing = model.routing
        if routing is not None and model.stream == stream:
            # Divided by their sum, because the relative weights are compared, also if weights do not sum to 1.
            shares = [np.abs(w) / np.abs(w).sum(0) for w in routing.weights]
            name = model.name if len(diagnosis.models) > 1 else ""
            routings.append(Routing(name, diagnosis.t_values, shares, routing.reader_names, routing.source_names))
    return routing_plot(routings, HEATMAPS_BY_T)


def reach_plot(diagnosis: Diagnosis) -> Figure:
    """Split of each reader's weight between the embedding and the two halves of depth, at three t."""
    models = [model for model in diagnosis.models if model.routing]
    times = chosen_times(diagnosis.t_values)
    panels = [
        _Panel(_titled(diagnosis, model.name, f"t = {diagnosis.t_values[t]:.2g}"), _reach(model, t))
        for model in models
        for t in times
    ]
    figure = _grid(panels, y="share of the weight")
    for ax in figure.axes:
        ax.set_ylim(0, 1)
        ax.grid(False)
    _legend_below(figure, figure.axes[0])
    return figure


def _reach(model: ModelDiagnosis, t_index: int) -> Callable[[Axes], None]:
    def draw(ax: Axes) -> None:
        positions = model.profiles["embedding_share"].positions
        bottom = np.zeros(len(positions))
        for name, (label, colour) in REACH.items():
            share = np.nan_to_num(model.profiles[name].mean[t_index])
            ax.bar(positions, share, 1 / model.per_block, bottom=bottom, color=colour, label=label)
            bottom = bottom + share

    return draw


def variance_plot(diagnosis: Diagnosis) -> Figure:
    """Parts of the variance of each reader's weights, and above them the size of that variance."""
    models = [model for model in diagnosis.models if model.routing]
    figure = new_figure(WIDTH, 0.4 + 2.5 * len(models))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(models), 2, squeeze=False, sharex="col", sharey="col", width_ratios=(2.4, 1))
    for (left, right), model in zip(axes, models, strict=True):
        assert model.routing is not None
        variances = model.routing.variances
        positions, width = np.arange(1, len(variances) + 1) / model.per_block, 1 / model.per_block
        total = variances.sum(1)
        shares = np.divide(variances, total[:, None], out=np.zeros_like(variances), where=total[:, None] > 0)
        bottom = np.zeros(len(shares))
        for place, effect in enumerate(EFFECTS):
            if effect == "class" and diagnosis.num_groups == 1:  # nothing of that
                continue
            label, colour = diagnosis.noun if effect == "class" else effect, EFFECT_COLOURS[effect]
            left.bar(positions, shares[:, place], width, bottom=bottom, color=colour, label=label)
            bottom += shares[:, place]
        spread = np.sqrt(total / [max(len(sources), 1) for sources in model.routing.source_names])
        right.bar(positions, spread, width, color=FAINT)
        last = model is models[-1]
        title = _titled(diagnosis, model.name, "what the weights depend on")
        style_axes(left, x=DEPTH if last else "", y="share of the variance", title=title)
        style_axes(right, x=DEPTH if last else "", y="standard deviation of a weight", title="how much they vary")
        left.set_ylim(0, 1)
        for ax in (left, right):
            ax.grid(False)
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _legend_below(figure, axes[0, 0])
    return figure
