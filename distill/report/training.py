"""The page of a training on its way: its curves, what looks found, what guards did. It is written anew at each look."""

from __future__ import annotations

import time
from pathlib import Path

from distill.files import write_text
from distill.objectives.watch import SHOWN, Look, Watch
from distill.report.page import Picture, duration, template
from distill.report.page_data import TextTable
from distill.report.plots import training_plots, training_span
from distill.report.style import png
from distill.report.table import format_number
from distill.training.run_log import read_log

PAGE = "training.html"
MOST_ROWS = 40
AT_MOST_EVERY = 60.0  # a page takes a second or two, which short trainings would notice


def looks_table(watch: Watch) -> TextTable:
    """Looks by row: the values, how far from their yardsticks they are, and the score."""
    looks, best = watch.looks, watch.best_look
    names = [name for name in SHOWN if any(name in look.values for look in looks)]
    every = -(-len(looks) // MOST_ROWS)
    kept = [look for i, look in enumerate(looks) if i % every == 0 or look is best or look is looks[-1]]
    rows = [
        [
            f"{_name(look)}{' (best)' if look is best else ''}",
            f"{look.score:.2f}",
            *(_cell(look, name) for name in names),
        ]
        for look in kept
    ]
    return TextTable(
        "Looks on the way",
        ["update", "score", *(name.replace("_", " ") for name in names)],
        rows,
        "The averaged student's pictures, from the same noise each time. In brackets how far a value is from the "
        "data's, or where that is not known the teacher's, in the spread of one picture of the teacher to the next; "
        "the score is the mean of their sizes.",
    )


class TrainingPage:
    """`report/training.html` in the folder of a run, written at looks, but no sooner than `AT_MOST_EVERY` seconds after
    the start and the time before.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self._folder, self._title = folder, title
        self._written = time.monotonic()

    def on_look(self, watch: Watch) -> None:
        if time.monotonic() - self._written >= AT_MOST_EVERY:
            self.write(watch)

    def finish(self, watch: Watch, *, has_report: bool) -> None:
        """Write the last one; none where there was none before, and a report shows the same."""
        if not has_report or (self._folder / "report" / PAGE).is_file():
            self.write(watch)

    def write(self, watch: Watch) -> Path:
        """Write it, whole or not at all. Returns: its path."""
        history = read_log(self._folder)
        pictures = [
            Picture(f"training-{panel.name}.png", png(figure), panel.title, caption=panel.caption)
            for panel, figure in training_plots(history).items()
        ]
        steps, seconds, looks = training_span(history)
        html = template("training.html.j2").render(
            title=self._title,
            pictures=pictures,
            table=looks_table(watch) if watch.looks else None,
            events=[str(event) for event in watch.events],
            span=f"{steps} updates"
            + (f", {duration(seconds)}, {looks:.1%} of it for looks" if seconds is not None else ""),
        )
        path = self._folder / "report" / PAGE
        write_text(path, html)
        self._written = time.monotonic()
        return path


def _name(look: Look) -> str:
    return str(look.step) if look.decay is None else f"{look.step}, EMA {look.decay:g}"


def _cell(look: Look, name: str) -> str:
    if name not in look.values:
        return "-"
    away = f" ({look.away[name]:+.1f})" if name in look.away else ""
    return f"{format_number(look.values[name])}{away}"
