"""Pictures of two arms side by side with the maps of their edges, chosen by rule and never by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from distill.report.grids import DPI, GAP, pixels
from distill.report.page_data import Crop
from distill.report.style import FAINT, INK, new_figure

SIDE = 224  # pixels of a picture after upscaling, at least
HEADING = 34
POINTS = 72 / DPI


def crops_figure(crops: Sequence[Crop]) -> Figure:
    """A row for each crop: its pictures, then their edge maps, all of one scale of steepness."""
    height_px, width_px = np.shape(crops[0].images[0])[1:]
    scale = max(1, -(-SIDE // max(height_px, width_px)))
    cell_h, cell_w = height_px * scale, width_px * scale
    columns = 2 * len(crops[0].images)
    width, height = columns * (cell_w + GAP) - GAP, len(crops) * (2 * HEADING + cell_h + GAP)
    figure = new_figure(width / DPI, height / DPI, dpi=DPI)
    for row, crop in enumerate(crops):
        top = row * (2 * HEADING + cell_h + GAP)
        figure.text(0, 1 - (top + HEADING / 2) / height, crop.rule, fontsize=19 * POINTS, color=INK, va="center",
                    fontweight="bold")  # fmt: skip
        limit = max(float(np.max(edges)) for edges in crop.edges) or 1.0
        shown = [pixels(np.asarray(image), scale) for image in crop.images]
        shown += [pixels(1 - 2 * np.asarray(edges)[None] / limit, scale) for edges in crop.edges]
        titles = [*crop.names, *(f"edges of {name}" for name in crop.names)]
        for column, (picture, title) in enumerate(zip(shown, titles, strict=True)):
            left = column * (cell_w + GAP)
            y = 1 - (top + 1.5 * HEADING) / height
            figure.text(left / width, y, title, fontsize=16 * POINTS, color=FAINT, va="center")
            bottom = 1 - (top + 2 * HEADING + cell_h) / height
            axes = figure.add_axes((left / width, bottom, cell_w / width, cell_h / height))
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
    return figure
