"""What is computed of each image by itself, by name: rows of numbers whose means measures are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Rows = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] -> one row of k numbers for each, [N, k]."""

TABLES: dict[str, Rows] = {}


def register_table(rows: Rows) -> Rows:
    """Register under its function's name. Raises: ValueError if the name is taken."""
    if rows.__name__ in TABLES:
        raise ValueError(f"there is a table {rows.__name__!r} already")
    TABLES[rows.__name__] = rows
    return rows
