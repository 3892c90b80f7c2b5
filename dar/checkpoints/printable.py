"""A file's own words in a message: not too many, and none that moves the cursor of a terminal."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LENGTH = 200


def printable(value: object) -> str:
    """In one line of printable characters."""
    text = str(value)[:MAX_LENGTH]
    return text if text.isprintable() else ascii(text)


def listed(names: Iterable[object], limit: int = 4) -> str:
    """The first ones, with dots where there are more."""
    names = list(names)
    return ", ".join(map(printable, names[:limit])) + (", .." if len(names) > limit else "")
