"""The style of every picture in the report: colours, axes and PNG output."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from distill.report.page_data import DATA, HALF, Sampler

INK = "#1c1e21"
FAINT = "#6b7078"
GRID = "#e6e7ea"
BAND = "#f2f0e6"
DPI = 160

# Cool colours for teachers and warm ones for students, so that readers see the role before they read the legend.
# From the palettes of Okabe and Ito and of Paul Tol, which colour-blind readers can tell apart.
_COLOURS = {
    "teacher": ("#0072b2", "#56b4e9", "#009e73", "#332288", "#44aa99", "#6f8fa8", "#117733", "#88ccee"),
    "student": ("#d55e00", "#e69f00", "#cc79a7", "#882255", "#aa4499", "#a0522d", "#cc6677", "#c9a227"),
}


def sampler_colours(samplers: Sequence[Sampler]) -> dict[str, str]:
    """One colour per sampler, the same in every picture; the colour of the data is always `INK`."""
    colours = {DATA: INK, HALF: INK}
    taken = {role: iter(palette) for role, palette in _COLOURS.items()}
    for sampler in samplers:
        colours[sampler.name] = next(taken[sampler.role])
    return colours


def role_colour(role: str, colours: dict[str, str]) -> str:
    """The colour of a routing's owner: that of its sampler, or of the first sampler with its role."""
    return colours.get(role) or _COLOURS["teacher" if role.startswith("teacher") else "student"][0]


def new_figure(width: float, height: float, *, dpi: int = DPI) -> Figure:
    """An Agg figure of `width` x `height` inches that pyplot does not track."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def style_axes(ax: Axes, *, x: str = "", y: str = "", title: str = "") -> None:
    """Light axes: two spines, a faint grid, small ticks, and the title on the left."""
    ax.set_facecolor("white")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color("#b3b6bc")
        ax.spines[side].set_linewidth(0.8)
    ax.grid(True, which="major", color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(which="both", colors=FAINT, labelcolor=INK, labelsize=8.5, length=3, width=0.7)
    ax.tick_params(which="minor", length=0)
    ax.set_xlabel(x, fontsize=9, color=FAINT)
    ax.set_ylabel(y, fontsize=9, color=FAINT)
    if title:
        ax.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold", pad=8)


def png(figure: Figure) -> bytes:
    """The figure as PNG, without date or version: equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi, metadata={"Software": None})
    return buffer.getvalue()
