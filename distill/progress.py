"""Progress for people: bars on a terminal, lines elsewhere, both on stderr.

Silent until `show_progress` is called, which the command line does; from Python, and in notebooks, it is opt-in. Lines
go through the logger `distill`, so that a program that logs can have them without it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

logger = logging.getLogger("distill")
logger.addHandler(logging.NullHandler())


class _Stderr(logging.StreamHandler):
    """Writes to what `sys.stderr` is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_handler = _Stderr()


def show_progress(visible: bool = True) -> None:
    """Show bars and lines from now on, or hide them again. Of several processes the first alone shows any."""
    logger.removeHandler(_handler)
    if visible and os.environ.get("RANK", "0") == "0":
        logger.addHandler(_handler)
        logger.setLevel(logging.INFO)


def on_terminal() -> bool:
    """Whether bars are shown: progress is visible, and stderr is a terminal (or a notebook)."""
    return _handler in logger.handlers and Console(stderr=True).is_interactive


def progress_bar(columns: Iterable[ProgressColumn] | None = None, *, main_process: bool = True) -> Progress:
    """A bar with counts, time spent and time left; disabled where nobody would see it.

    Args:
        columns: in place of the usual ones. main_process: false on the ranks that keep quiet.
    """
    usual = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    disabled = not (main_process and on_terminal())
    return Progress(*(columns or usual), console=Console(stderr=True), disable=disabled)
