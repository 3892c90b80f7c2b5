"""Errors with a message for the person at the command line."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SAID_BY_MAIN = "the main process says so"
"""A note on what is raised in all processes because of the main one, which alone prints it."""


DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system says only of writing: no room, beyond a quota, beyond a limit, a disk that is read-only."""


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it a file, or files in a folder, are written: that the disk takes no more is the user's to mend.

    Libraries say so without the file's name. What names one elsewhere is handed on as it is.
    """
    try:
        yield
    except OSError as error:
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(path.parent)
        if error.errno not in DISK or elsewhere:
            raise
        raise UserError(f"{path} could not be written: {error.strerror or error}") from error


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
