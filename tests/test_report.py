"""The report: what was given is what stands there, whole or not at all, and nothing is fetched."""

from __future__ import annotations

import dataclasses
import html
import re
import struct
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from distill.report import (
    DATA,
    Cell,
    Edges,
    Headline,
    Measure,
    Report,
    Routing,
    Sampler,
    Spectrum,
    check_report,
    write_report,
)
from distill.report.grids import DPI, TEXT, TEXT_LINE, fitting, grid, one_of_each_class, overview, pixels
from distill.report.heatmaps import embedding_shares
from distill.report.page_data import MAX_PER_ROLE
from distill.report.plots import spectra_plot, training_plots
from distill.report.style import new_figure, sampler_colours
from distill.report.table import MISSING, compare, format_cell, format_number, table_rows, verdicts
from tests.conftest import RENDER

TEACHER, STUDENT, OTHER = "teacher, 4 steps", "student, 4 steps", "other student, 4 steps"
LOWER = Measure("frechet", "sets", "Fréchet distance", "", "lower", "Distance of two Gaussian fits.")
HIGHER = Measure("agreement", "sets", "Class agreement", "", "higher", "Share of images of the right class.")
AS_DATA = Measure("high", "spectrum", "High-frequency share", "dB", "as data", "Too little is blur, too much is grain.")
VOID = {"meta", "link", "img", "br", "hr", "input"}


@pytest.fixture(scope="module", autouse=True)
def rendered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", RENDER)
        yield


def images(seed: int = 0, shape: tuple[int, ...] = (6, 1, 8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def sampler(name: str, **changes: Any) -> Sampler:
    role = "teacher" if name.startswith("teacher") else "student"
    values = {"role": role, "images": images(), "num_steps": 4, "nfe": 4, "images_per_second": 12.5}
    return Sampler(name, **{**values, **changes})


def small_report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "title": "A title",
        "subtitle": "A subtitle",
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "samplers": [sampler(TEACHER), sampler(STUDENT, images=images(1))],
    }
    return Report(**{**values, **changes})


def routing(role: str) -> Routing:
    weights = [np.ones((n, 3)) / n for n in (1, 2, 3)]
    return Routing(role, np.array([0.1, 0.5, 0.9]), weights, ["r1", "r2", "r3"], [["e"], ["e", "a"], ["e", "a", "b"]])


def full_report() -> Report:
    frequency = np.linspace(0, 0.5, 9)
    power = np.exp(-8 * frequency)
    curves = {DATA: power, TEACHER: 0.5 * power, STUDENT: 1.2 * power}
    history = [{"step": s, "elapsed_s": 2.0 * s, "student/grad_norm": 1.0 + s, "x0_gap/bin0": 0.1} for s in range(5)]
    return small_report(
        class_names=["bag", "shirt", "boot"],
        headline=[Headline("Speed", "26 ×", "against fifty steps")],
        spectra=[Spectrum(name, frequency, p) for name, p in curves.items()],
        edges=[Edges(name, frequency, p) for name, p in curves.items()],
        measures=[LOWER, HIGHER, AS_DATA],
        cells={
            "frechet": {TEACHER: Cell(2.03, 1.94, 2.12), STUDENT: Cell(1.5, 1.42, 1.58)},
            "agreement": {TEACHER: Cell(0.953, 0.94, 0.966), STUDENT: Cell(0.91, 0.9, 0.92)},
            "high": {DATA: Cell(0.0452), TEACHER: Cell(0.0262, 0.025, 0.027), STUDENT: None},
        },
        history=history,
        routing=[routing("teacher"), routing("student")],
        config_yaml="training:\n  lr: 1.0e-4\n",
        versions={"torch": "2.15"},
        seeds={"noise": 1234},
        notes=["The classifier stands in for Inception."],
    )


def text_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Fails on tags that do not close each other in order; gathers attributes, cells and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.resources: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.resources.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def outline(page: str) -> Outline:
    parser = Outline()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_report(full_report(), folder) == folder / "report.html"
    return folder


def test_page_stands_alone(full_folder: Path) -> None:
    page = text_of(full_folder)
    found = outline(page)
    pictures = [resource for resource in found.resources if not resource.startswith("#")]
    assert len(pictures) == len(list(full_folder.glob("report-*.png"))) == 9
    assert all(resource.startswith("data:image/png;base64,") for resource in pictures)
    assert {resource[1:] for resource in found.resources if resource.startswith("#")} <= set(found.ids)
    assert not {"script", "link", "iframe"} & set(found.tags)
    assert not re.search(r"https?://|@import|url\(", page)


def test_everything_given_is_on_the_page(full_folder: Path) -> None:
    page = html.unescape(text_of(full_folder))
    for text in (
        "A title", "A subtitle", "26 ×", "against fifty steps", "lr: 1.0e-4", "2.15", "1234",
        "The classifier stands in for Inception.", LOWER.help, "12.5",
    ):  # fmt: skip
        assert text in page
    cells = re.findall(r"<td><span[^>]*>([^<]*)</span>(?: <span class=\"interval\">([^<]*)</span>)?", page)
    assert ("2.030", "[1.94, 2.12]") in cells
    assert ("1.500", "[1.42, 1.58]") in cells
    assert ("0.0452", "") in cells
    assert cells[-1] == ("–", "")  # the student's high-frequency share was given as None
    assert "5 steps" not in page and "4 steps in 8 s" in page


def test_both_directions_are_said(full_folder: Path) -> None:
    page = html.unescape(text_of(full_folder))
    assert "<strong>better</strong> on Fréchet distance<" in page
    assert "<strong>worse</strong> on Class agreement<" in page


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    measure = Measure("m", hostile, hostile, hostile, "lower", '"><img src=x>')
    report = small_report(
        title=hostile,
        notes=[hostile],
        config_yaml=hostile,
        measures=[measure],
        samplers=[sampler(hostile, note=hostile)],
    )
    write_report(report, tmp_path)
    found = outline(text_of(tmp_path))
    assert "script" not in found.tags
    assert "x" not in found.resources
    assert html.escape(hostile, quote=False).replace("'", "&#39;") in text_of(tmp_path)


def test_equal_reports_give_equal_bytes(full_folder: Path, tmp_path: Path) -> None:
    write_report(full_report(), tmp_path)
    names = {path.name for path in full_folder.iterdir()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names:
        assert (tmp_path / name).read_bytes() == (full_folder / name).read_bytes(), name
    for path in tmp_path.glob("*.png"):
        assert not re.search(rb"tIME|tEXt|iTXt", path.read_bytes())


def test_a_new_report_replaces_the_old_pictures(tmp_path: Path) -> None:
    write_report(small_report(history=full_report().history), tmp_path)
    assert (tmp_path / "report-training-x0-gap.png").exists()
    write_report(small_report(), tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["report-grid-0.png", "report-grid-1.png", "report-overview.png", "report.html"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    bad = small_report(samplers=[sampler(TEACHER), sampler(STUDENT, images=images(shape=(6, 1, 8, 9)))])
    with pytest.raises(ValueError, match=re.escape(f"{STUDENT!r} have shape (6, 1, 8, 9)") + r".*\(6, 1, 8, 8\)"):
        write_report(bad, folder)
    assert not folder.exists()


def test_failure_while_writing_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(small_report(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        if "report.html" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError("no space left on device")

    monkeypatch.setattr("distill.files.whole.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_report(small_report(title="Another", samplers=[sampler(TEACHER, images=images(9))]), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("count", [1, 8])
def test_colour_images_without_anything_else(tmp_path: Path, count: int) -> None:
    pictures = images(shape=(6, 3, 37, 23))
    samplers = [sampler(f"student {i}", images=pictures, images_per_second=None) for i in range(count)]
    write_report(small_report(samplers=samplers), tmp_path)
    found = outline(text_of(tmp_path))
    assert found.tags.count("img") == 1 + count
    assert {"training", "routing", "detail", "measures", "notes", "made"}.isdisjoint(found.ids)


def pixels_of(figure: Any) -> np.ndarray:
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def test_grid_shows_every_pixel_as_a_block() -> None:
    pictures = images(shape=(4, 3, 5, 7))
    drawn = pixels_of(grid(pictures, np.array([3, 1, 2, 0])))
    assert drawn.shape == (80, 4 * 112 + 3 * 4, 3)  # one row of four classes
    expected = pixels(pictures[1], 16)  # label 1 comes second of the sorted classes
    np.testing.assert_array_equal(drawn[:, 116 : 116 + 112], expected)
    np.testing.assert_array_equal(expected[::16, ::16], np.rint((pictures[1].transpose(1, 2, 0) + 1) * 127.5))


def test_overview_has_a_row_per_sampler_and_a_column_per_class() -> None:
    report = small_report(labels=np.array([2, 0, 1, 0, 1, 2]))
    figure = overview(report)
    drawn = pixels_of(figure)
    blocks = [pixels(each.images[index], 17) for each in report.samplers for index in (1, 3, 2, 4, 0, 5)]
    placed: list[Any] = sorted(figure.images, key=lambda image: (-vars(image)["oy"], vars(image)["ox"]))
    assert len(placed) == len(blocks)
    for image, block in zip(placed, blocks, strict=True):
        top, left = drawn.shape[0] - int(image.oy) - 136, int(image.ox)
        np.testing.assert_array_equal(drawn[top : top + 136, left : left + 136], block)


PROMPT = 'a tag of $5 and $10, "quoted", on a wooden_door / a^2 + b'


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("a boat", 140, ["a boat"]),
        (PROMPT, 2000, [PROMPT]),
        (PROMPT, 155, ["a tag of $5 and", '$10, "quoted",', "on a", "wooden_door /", "a^2 + b"]),
        ("x" * 60, 140, ["x" * 12] * 5),
        ("WM " * 20, 140, ["WM WM WM"] * 5 + ["WM WM WM…"]),
        ("", 140, [""]),
    ],
)
def test_long_names_are_wrapped(name: str, width: int, lines: list[str]) -> None:
    assert fitting(name, width) == lines
    figure = new_figure(8, 1, dpi=DPI)
    for line in lines:
        text = figure.text(0, 0, line, fontsize=TEXT * 72 / DPI, parse_math=False)
        assert text.get_window_extent().width <= width + 1


def test_names_in_lines_take_nothing_from_the_pictures() -> None:
    page = small_report(class_names=["a $^$ b", PROMPT, "boot"])  # not a formula, which it would be a wrong one of
    plain, wrapped = (pixels_of(overview(report)) for report in (small_report(), page))
    taller = len(wrapped) - len(plain)
    assert taller == 5 * TEXT_LINE
    np.testing.assert_array_equal(wrapped[taller + 36 :], plain[36:])
    assert (wrapped[: taller + 36] < 255).any(axis=(1, 2)).sum() > 5 * 8  # rows with ink: six lines of letters


def test_one_of_each_class_comes_before_a_second() -> None:
    labels = np.array([2, 2, 2, 0, 1, 1])
    assert one_of_each_class(labels, 3).tolist() == [3, 4, 0]
    assert one_of_each_class(labels, 5).tolist() == [3, 4, 5, 0, 1]
    assert one_of_each_class(labels, 99).tolist() == [3, 4, 5, 0, 1, 2]


def test_colours_are_all_different() -> None:
    names = [f"{role} {i}" for role in ("teacher", "student") for i in range(MAX_PER_ROLE)]
    assert len(set(sampler_colours([sampler(name) for name in names]).values())) == len(names) + 1


def test_spectra_below_the_data_lie_below_zero_decibels() -> None:
    power, ratio = spectra_plot(full_report()).axes
    assert power.get_yscale() == "log"
    lines = {line.get_color(): np.asarray(line.get_ydata()) for line in ratio.lines}
    colours = sampler_colours(full_report().samplers)
    np.testing.assert_allclose(lines[colours[TEACHER]], 10 * np.log10(0.5))
    np.testing.assert_allclose(lines[colours[STUDENT]], 10 * np.log10(1.2))
    low, high = ratio.get_ylim()
    assert low == -high and high > 3.0


def test_spectra_without_data_are_compared_with_the_first_sampler() -> None:
    frequency = np.linspace(0, 0.5, 4)
    spectra = [Spectrum(TEACHER, frequency, np.array([1.0, 0.1, 0.0, 0.01])), Spectrum(STUDENT, frequency, np.ones(4))]
    power, ratio = spectra_plot(small_report(spectra=spectra)).axes
    np.testing.assert_array_equal(power.lines[0].get_ydata(), [1.0, 0.1, np.nan, 0.01])
    np.testing.assert_allclose(ratio.lines[1].get_ydata(), [0, 10, np.nan, 20], atol=1e-9)
    assert f"against {TEACHER}" in ratio.get_ylabel()


def test_training_draws_what_the_log_has() -> None:
    history = [{"step": s, "critic_lag": 1.0, "event": "x", "lr": 1e-4} for s in range(4)]
    history[1]["x0_gap/bin10"] = history[3]["x0_gap/bin10"] = 0.5
    history[0]["x0_gap/bin2"] = history[2]["x0_gap/bin2"] = 0.25
    history[2]["critic_lag"] = float("nan")
    history[3]["std_drift"] = 1.0  # once is no line
    for record in history:
        record |= {"student/loss": 0.5}  # a surrogate without a meaning
    figures = {panel.name: figure for panel, figure in training_plots(history).items()}
    assert sorted(figures) == ["critic-lag", "x0-gap"]
    gap = figures["x0-gap"].axes[0]
    assert [line.get_label() for line in gap.lines] == ["t bin 2", "t bin 10"]
    assert [np.asarray(line.get_xdata()).tolist() for line in gap.lines] == [[0, 2], [1, 3]]
    assert "1 not finite" in figures["critic-lag"].axes[0].get_title(loc="left")


def test_a_line_alone_is_named_where_the_title_does_not_say_whose_it_is() -> None:
    history = [{"step": s, "fake_score/grad_norm": 1.0, "student/grad_norm": 1.0} for s in (0, 50)]
    figures = {panel.name: figure for panel, figure in training_plots(history).items()}
    (legend,) = figures["gradients"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["fake_score/grad_norm"]
    assert not figures["student-gradient"].legends


def test_share_of_high_frequencies_stands_beside_the_datas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = [{"step": s, "high_frequency_ratio": 0.04} for s in (0, 50)]
    drawn = {}

    def plots(*args: Any) -> dict[Any, Any]:
        drawn.update({panel.name: figure for panel, figure in training_plots(*args).items()})
        return training_plots(*args)

    monkeypatch.setattr("distill.report.page.training_plots", plots)
    measure = dataclasses.replace(AS_DATA, name="high_frequency_ratio")
    cells = {"high_frequency_ratio": {DATA: Cell(0.0452)}}
    write_report(small_report(history=history, measures=[measure], cells=cells), tmp_path)
    lines = [np.asarray(line.get_ydata()).tolist() for line in drawn["high-frequency"].axes[0].lines]
    assert lines == [[0.04, 0.04], [0.0452, 0.0452]]


def test_training_knows_the_names_of_the_log() -> None:
    history = [
        {
            "step": s,
            "fake_score/lag": 1.2,
            "std_drift": 0.1,
            "x0_gap": 0.3,
            "x0_gap/t 0.0-0.2": 0.1,
            "x0_gap/t 0.2-0.4": 0.2,
        }
        for s in (0, 50)
    ]
    figures = {panel.name: figure.axes[0] for panel, figure in training_plots(history).items()}
    assert sorted(figures) == ["critic-lag", "std-drift", "x0-gap"]
    assert [line.get_label() for line in figures["x0-gap"].lines] == ["t 0.0-0.2", "t 0.2-0.4"]
    assert np.asarray(figures["critic-lag"].lines[1].get_ydata()).tolist() == [1, 1]
    assert np.asarray(figures["std-drift"].lines[1].get_ydata()).tolist() == [0, 0]


def test_embedding_shares_leave_out_readers_without_a_choice() -> None:
    readers, shares, even = embedding_shares(routing("teacher"))
    assert readers.tolist() == [2, 3]
    np.testing.assert_allclose(shares, [[1 / 2] * 3, [1 / 3] * 3])
    np.testing.assert_allclose(even, [1 / 2, 1 / 3])


def test_anchored_embedding_has_no_share(tmp_path: Path) -> None:
    anchored = Routing("teacher", np.array([0.5]), [np.zeros((0, 1)), np.ones((1, 1))], ["r1", "r2"], [[], ["a"]])
    assert len(embedding_shares(anchored)[0]) == 0
    write_report(small_report(routing=[anchored]), tmp_path)
    assert (tmp_path / "report-routing.png").exists()
    assert not (tmp_path / "report-shares.png").exists()


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Cell(0.523, 0.49, 0.56), ("0.523", "[0.49, 0.56]")),
        (Cell(0.04523, 0.0441, 0.0463), ("0.0452", "[0.0441, 0.0463]")),
        (Cell(-0.12, -0.3, 0.06), ("−0.12", "[−0.30, 0.06]")),
        (Cell(135.2, 100, 170), ("135", "[100, 170]")),
        (Cell(1.5), ("1.50", "")),
        (Cell(2.0, 2.0, 2.0), ("2.00", "[2.00, 2.00]")),
        (Cell(float("nan")), ("nan", "")),
        (None, (MISSING, "")),
    ],
)
def test_format_cell(cell: Cell | None, expected: tuple[str, str]) -> None:
    assert format_cell(cell) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (7.4, "7.40"), (0.00012, "0.000120"), (-3e-9, "−3.00e−09")]
)  # fmt: skip
def test_format_number(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("measure", "teacher", "student", "expected"),
    [
        (LOWER, Cell(2, 1.9, 2.1), Cell(1, 0.9, 1.1), 1),
        (LOWER, Cell(1, 0.9, 1.1), Cell(2, 1.9, 2.1), -1),
        (HIGHER, Cell(2, 1.9, 2.1), Cell(1, 0.9, 1.1), -1),
        (LOWER, Cell(2, 1, 3), Cell(1.5, 0.5, 2.5), 0),
        (LOWER, Cell(2), Cell(1), 0),
        (AS_DATA, Cell(0.5, 0.4, 0.6), Cell(1.1, 1.0, 1.2), 1),
        (AS_DATA, Cell(0.9, 0.85, 0.95), Cell(1.5, 1.4, 1.6), -1),
        (AS_DATA, Cell(0.9, 0.7, 1.1), Cell(1.1, 1.05, 1.2), 0),
        (LOWER, None, Cell(1, 0.9, 1.1), None),
    ],
)
def test_compare(measure: Measure, teacher: Cell | None, student: Cell, expected: int | None) -> None:
    cells = {measure.name: {DATA: Cell(1.0), TEACHER: teacher, STUDENT: student}}
    report = small_report(measures=[measure], cells=cells)
    assert compare(report, measure, STUDENT, TEACHER) == expected


def test_marks_stay_among_equal_steps() -> None:
    slow = sampler("teacher, 50 steps", num_steps=50)
    others = [sampler(TEACHER), sampler(STUDENT), sampler(OTHER)]
    row = {
        slow.name: Cell(0.1, 0.05, 0.15),
        TEACHER: Cell(3, 2.9, 3.1),
        STUDENT: Cell(2, 1.9, 2.1),
        OTHER: Cell(1.9, 1.8, 2),
    }
    report = small_report(samplers=[slow, *others], measures=[LOWER], cells={"frechet": row})
    (found,) = table_rows(report)
    assert [cell.mark for cell in found.cells] == ["", "", "", "slight"]
    clear = dataclasses.replace(report, cells={"frechet": {**row, OTHER: Cell(1, 0.9, 1.1)}})
    assert [cell.mark for cell in table_rows(clear)[0].cells] == ["", "", "", "clear"]
    assert [verdict.student for verdict in verdicts(report)] == [STUDENT, OTHER]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samplers": []}, "at least one sampler"),
        ({"samplers": [sampler(TEACHER), sampler(TEACHER)]}, "different names"),
        ({"samplers": [sampler(TEACHER, images=np.full((6, 1, 8, 8), np.nan))]}, f"{TEACHER}.*384 values"),
        ({"samplers": [sampler(TEACHER, images=images(shape=(6, 4, 8, 8)))]}, "1 or 3"),
        ({"labels": np.zeros(5, dtype=int)}, r"\(5,\).*\(6,\)"),
        ({"class_names": ["a", "b"]}, "label 2 has no name"),
        ({"spectra": [Spectrum("nobody", np.ones(2), np.ones(2))]}, "nobody"),
        ({"spectra": [Spectrum(TEACHER, np.ones(2), np.ones(3))]}, r"power has shape \(3,\).*\(2,\)"),
        ({"edges": [Edges(TEACHER, np.ones(2), np.ones(3))]}, r"\(2,\).*\(3,\)"),
        ({"cells": {"unknown": {}}}, "unknown"),
        ({"measures": [LOWER], "cells": {"frechet": {"nobody": None}}}, "nobody"),
        ({"measures": [LOWER], "cells": {"frechet": {TEACHER: Cell(1, 2, 1)}}}, "upside down"),
        ({"routing": [Routing("teacher", np.ones(2), [np.ones((1, 3))], ["r"], [["e"]])]},
         r"\(1, 3\).*\(1, 2\)"),
    ],
)  # fmt: skip
def test_content_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_report(small_report(**changes))


def test_png_of_the_page_is_the_file_beside_it(full_folder: Path) -> None:
    content = (full_folder / "report-overview.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", content[16:20])[0] == 6 * (17 * 8 + 8) - 8
