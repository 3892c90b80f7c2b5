"""Files that ship with the package, each with a card: a teacher, a feature extractor, reference statistics; recipes.

May import errors.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
EMBEDDED = "embedded"


def asset(name: str) -> Path:
    """The path of a shipped file or folder: `teacher`, `extractor`, `data.npz` or `teacher.npz`."""
    return FOLDER / name


def resolve(path: str, name: str) -> Path:
    """`path` itself, or the shipped asset `name` where the user wrote `embedded`."""
    return asset(name) if path == EMBEDDED else Path(path).expanduser()
