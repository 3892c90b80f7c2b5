"""Errors with a message for the person at the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAID_BY_MAIN = "the main process says so"
"""A note on what is raised in all processes because of the main one, which alone prints it."""


class UserError(ValueError):
    """A mistake that the user can mend: one clear line, exit code 2."""


@contextmanager
def reading(path: Path, complaint: str = "is damaged") -> Iterator[None]:
    """Within it a file is read that may hold anything: what cannot be made of it is the user's to mend.

    Readers meet arbitrary bytes with arbitrary exceptions, so that it is what was being done that counts, not their
    type. What names the file itself is handed on as it is.
    """
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        if isinstance(error, ValueError) and said.startswith(str(path)):
            raise
        raise UserError(f"{path} {complaint}: {said}") from error


class NonFiniteError(RuntimeError):
    """Something is NaN or infinite: a loss or gradient before its optimizer step, or weights before they are saved."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Lower the learning rate or the guidance scale and start anew; earlier checkpoints are intact"
        )


class StoppedError(Exception):
    """A training ended because a signal asked it to, with a checkpoint to go on from."""

    def __init__(self, signal: str, step: int) -> None:
        super().__init__(f"stopped by {signal} after update {step}, of which there is a checkpoint")
        self.signal, self.step = signal, step
