"""The folder that a verb writes its results into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from distill.files import claimed
from distill.processes import Processes


@contextmanager
def claimed_output(output: str | Path | None, begun: str = "") -> Iterator[Path | None]:
    """`claimed` by the main process for all of them; None where nothing is to be written."""
    if output is None:
        yield None
        return
    with ExitStack() as stack:
        yield Processes.all().from_main(lambda: stack.enter_context(claimed(output, begun=begun)))
