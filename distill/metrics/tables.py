"""What is computed of each sample by itself, by name: rows of numbers whose means measures are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.metrics.images import AT_ONCE, by_parts
from distill.render import as_videos

Rows = Callable[[Tensor], Tensor]
"""Pictures [N, C, H, W], or videos [N, C, F, H, W], -> one row of k numbers for each, [N, k]."""

TABLES: dict[str, Rows] = {}
"""Of pictures, and of each frame of a video."""
VIDEO_TABLES: dict[str, Rows] = {}
"""Of videos as a whole; rows of nan for those of one frame, which pictures are."""


def register_table(rows: Rows) -> Rows:
    """Register a table of pictures under its function's name. Raises: ValueError if the name is taken."""
    return _add(rows, TABLES)


def register_video_table(rows: Rows) -> Rows:
    """Register a table of videos under its function's name. Raises: ValueError if the name is taken."""
    return _add(rows, VIDEO_TABLES)


def _add(rows: Rows, tables: dict[str, Rows]) -> Rows:
    if rows.__name__ in TABLES or rows.__name__ in VIDEO_TABLES:
        raise ValueError(f"there is a table {rows.__name__!r} already")
    tables[rows.__name__] = rows
    return rows


def rows_of(table: str, samples: Tensor) -> Tensor:
    """The rows of a table, [N, k], one for each picture or video; a table of pictures has the mean over its frames."""
    if table in TABLES:
        return by_parts(TABLES[table], samples)
    size = max(1, AT_ONCE // samples[0].numel())
    return torch.cat([VIDEO_TABLES[table](videos.float()) for videos in as_videos(samples).split(size)])
