"""The report as a self-contained page: embedded pictures, no scripts, no external resources. Writes are atomic."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from distill.files import write_files
from distill.report.crops import crops_figure
from distill.report.grids import grid, overview
from distill.report.heatmaps import embedding_shares, routing_plot, shares_plot
from distill.report.page_data import DATA, Report, check_report
from distill.report.plots import edges_plot, spectra_plot, training_plots, training_span, widths_plot
from distill.report.style import png, sampler_colours
from distill.report.table import format_number, table_columns, table_rows, verdicts

PAGE = "report.html"
PREFIX = "report-"  # prefix of the picture files beside the page


@dataclass(frozen=True)
class Picture:
    """A PNG with the attributes that the page needs. `width` in pixels of the PNG."""

    file: str
    png: bytes
    alt: str
    title: str = ""
    caption: str = ""

    @property
    def width(self) -> int:
        return struct.unpack(">I", self.png[16:20])[0]

    @property
    def uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def write_report(report: Report, folder: Path, beside: Mapping[str, bytes] | None = None) -> Path:
    """Write `report.html` and its pictures as `report-*.png` into the folder, which is created if missing.

    Everything is drawn before the first byte is written; the page is written last, by a rename. Equal reports give
    equal bytes. An older page and its pictures are replaced.

    beside: contents of more files, by name.

    Returns: the path of the page.
    Raises: ValueError, which names what does not fit together (see `check_report`); the folder is then unchanged.
    """
    check_report(report)
    pictures = draw(report)
    html = render(report, pictures)
    stale = {path.name for path in folder.glob(f"{PREFIX}*.png")} if (folder / PAGE).exists() else set()
    files = {picture.file: picture.png for group in pictures.values() for picture in group}
    write_files(folder, {**(beside or {}), **files, PAGE: html.encode()})
    for name in stale - set(files):
        (folder / name).unlink(missing_ok=True)
    return folder / PAGE


def draw(report: Report) -> dict[str, list[Picture]]:
    """All pictures, by section of the page; a section without content is an empty list."""
    pictures = {
        "overview": [_picture("overview", png(overview(report)), "Samplers side by side")],
        "crops": [_picture("crops", png(crops_figure(report.crops)), "Pictures and edges")] if report.crops else [],
        "spectra": [],
        "edges": [],
        "widths": [],
        "training": [],
        "routing": [],
        "shares": [],
        "grids": [],
    }
    if report.spectra:
        alt = "Radially averaged power spectra, and their ratio to the data's"
        pictures["spectra"].append(_picture("spectra", png(spectra_plot(report)), alt))
    if report.edges:
        pictures["edges"].append(_picture("edges", png(edges_plot(report)), "Density of gradient sizes"))
    if report.widths:
        pictures["widths"].append(_picture("widths", png(widths_plot(report)), "Density of the widths of edges"))
    of_data = report.cells.get("high_frequency_ratio", {}).get(report.yardstick)
    for panel, figure in training_plots(report.history, of_data.value if of_data else None).items():
        picture = _picture(f"training-{panel.name}", png(figure), panel.title, caption=panel.caption)
        pictures["training"].append(picture)
    if report.routing:
        alt = "Routing weights, reader by source"
        pictures["routing"].append(_picture("routing", png(routing_plot(report.routing)), alt))
        if any(len(embedding_shares(routing)[0]) for routing in report.routing):
            shares = png(shares_plot(report))
            pictures["shares"].append(_picture("shares", shares, "Share of the embedding over t and depth"))
    labels = np.asarray(report.labels)
    for index, sampler in enumerate(report.samplers):
        image = png(grid(np.asarray(sampler.images), labels))
        alt = f"Images of {sampler.name}"
        pictures["grids"].append(_picture(f"grid-{index}", image, alt, sampler.name, sampler.note))
    return pictures


def template(name: str) -> Template:
    """A template of this package; missing values raise an error, and text is escaped."""
    environment = Environment(
        loader=PackageLoader("distill.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = format_number
    environment.filters["duration"] = duration
    return environment.get_template(name)


def render(report: Report, pictures: Mapping[str, list[Picture]]) -> str:
    """The HTML of the page."""
    rates = [sampler.images_per_second for sampler in report.samplers]
    *_, height, width = np.shape(report.samplers[0].images)
    return template("report.html.j2").render(
        report=report,
        pictures=pictures,
        colours=sampler_colours(report.samplers),
        columns=table_columns(report),
        rows=table_rows(report),
        verdicts=verdicts(report),
        samplers={sampler.name: sampler for sampler in report.samplers},
        has_rates=any(rate is not None for rate in rates),
        yardstick="the data" if report.yardstick == DATA else report.yardstick,
        span=training_span(report.history),
        image_size=f"{height} × {width // report.frames}",
    )


def duration(seconds: float) -> str:
    """Seconds as readable text: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _picture(name: str, content: bytes, alt: str, title: str = "", caption: str = "") -> Picture:
    return Picture(f"{PREFIX}{name}.png", content, alt, title, caption)
