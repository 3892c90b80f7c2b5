"""Image grids: samplers side by side, and a large grid of each. Pixels are never smoothed."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from distill.render import GRID_CELL, enlargement
from distill.report.page_data import Report
from distill.report.style import FAINT, INK, new_figure, sampler_colours

ROW_WIDTH = 1480  # pixels; fits ten columns of 28 x 28 images at five times their size
CELL = 140  # side of a square as large as an image after upscaling, at most, in pixels
GAP = 8
DPI = 128  # a power of two, so that pixels / DPI * DPI is exact
MAX_COLUMNS = 10
GRID_PIXELS = 80_000  # image pixels per large grid before upscaling; limits the size of the page
TEXT = 19  # pixels
TEXT_LINE = 24
MAX_LINES = 6  # of a name above a column: a prompt of 60 characters needs them above the smallest


def overview(report: Report) -> Figure:
    """One row per sampler, one column per image; a column shares noise and label.

    Large images are not scaled down, because that would hide the detail in question; fewer of them are shown instead.
    """
    shape = np.shape(report.samplers[0].images)
    scale = enlargement(shape[2:], CELL)
    cell_h, cell_w = shape[2] * scale, shape[3] * scale
    count = min(MAX_COLUMNS, max(2, (ROW_WIDTH + GAP) // (cell_w + GAP)))
    chosen = one_of_each_class(report.labels, count)
    rows = [
        (sampler.name, _with_note(f"network evaluations: {sampler.nfe}", sampler.note), sampler.images)
        for sampler in report.samplers
    ]

    names = [fitting(class_name(report, int(report.labels[index])), cell_w) for index in chosen]
    heading, label = 12 + TEXT_LINE * max(map(len, names)), 40
    width = max(len(chosen) * (cell_w + GAP) - GAP, 720)
    height = heading + len(rows) * (label + cell_h + GAP)
    figure = new_figure(width / DPI, height / DPI, dpi=DPI)
    points = 72 / DPI  # font size in points per pixel
    bold = {"fontsize": 21 * points, "color": INK, "fontweight": "bold", "va": "center"}
    for column, lines in enumerate(names):
        x = (column * (cell_w + GAP) + cell_w / 2) / width
        for number, line in enumerate(reversed(lines)):  # the last one right above the picture
            y = 1 - (heading - 22 - number * TEXT_LINE) / height
            # A prompt may hold dollars, which are no formula.
            figure.text(x, y, line, fontsize=TEXT * points, color=FAINT, ha="center", va="center", parse_math=False)
    colours = sampler_colours(report.samplers)
    for row, (name, remark, images) in enumerate(rows):
        top = heading + row * (label + cell_h + GAP)
        y = 1 - (top + label / 2) / height
        figure.text(0, y, "■", fontsize=TEXT * points, color=colours[name], va="center")
        text = figure.text(24 / width, y, name, **bold)
        # The width of the name is known only after layout, by the same renderer that draws it later.
        end = text.get_window_extent().x1 / width
        figure.text(end + 14 / width, y, remark, fontsize=TEXT * points, color=FAINT, va="center")
        for column, index in enumerate(chosen):
            _place(figure, pixels(images[index], scale), column * (cell_w + GAP), top + label, height)
    return figure


def grid(images: np.ndarray, labels: np.ndarray) -> Figure:
    """A grid of images from one sampler, (N, C, H, W) in [-1, 1], sorted by class; limited in size."""
    count, _, height, width = images.shape
    count = min(count, max(4, GRID_PIXELS // (height * width)))
    num_classes = len(np.unique(labels))
    if count < len(images) and count >= num_classes:
        count -= count % num_classes  # the same number per class
    order = one_of_each_class(labels, count)
    classes, per_class = np.unique(np.asarray(labels)[order], return_counts=True)
    # If all classes have equally many images, each row holds complete classes; otherwise the grid is nearly square.
    if len(set(per_class)) == 1 and 4 <= per_class[0] <= 16:
        columns = int(per_class[0])
    elif len(set(per_class)) == 1 and 4 <= len(classes) <= 16:
        columns = len(classes)
        order = order.reshape(len(classes), -1).T.reshape(-1)
    else:
        columns = int(np.ceil(np.sqrt(len(order))))
    scale = enlargement((height, width), GRID_CELL)
    gap = 4
    rows = -(-len(order) // columns)
    full_w, full_h = (columns * (width * scale + gap) - gap, rows * (height * scale + gap) - gap)
    figure = new_figure(full_w / DPI, full_h / DPI, dpi=DPI)
    for place, index in enumerate(order):
        row, column = divmod(place, columns)
        _place(
            figure,
            pixels(images[index], scale),
            column * (width * scale + gap),
            row * (height * scale + gap),
            full_h,
        )
    return figure


def pixels(image: np.ndarray, scale: int) -> np.ndarray:
    """One image (C, H, W) in [-1, 1] as (scale H, scale W, 3) uint8; every pixel becomes a square block.

    Values outside [-1, 1] are clipped, as in a saved image.
    """
    bytes_ = np.rint((np.clip(np.asarray(image, dtype=np.float64), -1, 1) + 1) * 127.5).astype(np.uint8)
    rgb = np.broadcast_to(bytes_, (3, *bytes_.shape[1:])).transpose(1, 2, 0)
    return rgb.repeat(scale, axis=0).repeat(scale, axis=1)


def one_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most `count` images: the first of each class, then the second of each class; sorted by class."""
    labels = np.asarray(labels)
    rank = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen = np.lexsort((labels, rank))[:count]
    return chosen[np.lexsort((rank[chosen], labels[chosen]))]


def class_name(report: Report, label: int) -> str:
    """The name of a class, or its number if there are no names."""
    return str(label) if report.class_names is None else report.class_names[label]


def fitting(name: str, width: int) -> list[str]:
    """The name in lines of at most `width` pixels of `TEXT`, with an ellipsis where it needs more than `MAX_LINES`.

    Lines end between words, or within one that is too long for a line.
    """
    lines, rest = [], name.strip()
    while rest and len(lines) < MAX_LINES:
        end = _longest(rest, width)
        if end < len(rest) and " " in rest[1 : end + 1]:
            end = rest.rindex(" ", 1, end + 1)
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    if rest:
        last = f"{lines[-1]} {rest}"
        lines[-1] = last[: _longest(last, width - TEXT)].rstrip() + "…"
    return lines or [""]


def _longest(text: str, width: int) -> int:
    """How many characters of the text fit into `width` pixels, at least one."""
    renderer, font = RendererAgg(1, 1, DPI), FontProperties(size=TEXT * 72 / DPI)
    fits = (
        n for n in range(len(text), 1, -1) if renderer.get_text_width_height_descent(text[:n], font, False)[0] <= width
    )
    return next(fits, 1)


def _with_note(cost: str, note: str) -> str:
    return f"{cost} · {note}" if note else cost


def _place(figure: Figure, rgb: np.ndarray, x: int, top: int, height: int) -> None:
    """Copy pixels into the figure without axes, so that nothing is resampled."""
    figure.figimage(rgb, x, height - top - rgb.shape[0], origin="upper")
