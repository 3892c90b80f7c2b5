"""An encoder's features of a data set, computed once: what `repa.encoder = stored` learns from.

FOLDER/features.json   whose they are, and how many are there
FOLDER/features.npy    (N, T, D) in float16, row i of sample i
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.files import read_json, write_text

INDEX_FILE, FEATURES_FILE = "features.json", "features.npy"


class StoredFeatures:
    """Features of a data set of `num` samples, read row by row.

    Raises: UserError where the folder holds none, not all, or those of another number of samples.
    """

    def __init__(self, folder: str | Path, num: int) -> None:
        path = Path(folder).expanduser()
        index = read_index(path)
        if index["done"] < index["num"]:
            raise UserError(f"{path} holds {index['done']} of {index['num']} features; make the others first")
        if index["num"] != num:
            raise UserError(f"{path} holds features of {index['num']} samples; the data have {num}")
        try:
            self._rows: Any = np.load(path / FEATURES_FILE, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{path / FEATURES_FILE} is damaged: {error}") from error
        if self._rows.ndim != 3 or len(self._rows) != num:
            raise UserError(f"{path / FEATURES_FILE} is damaged: its shape is {self._rows.shape}, not ({num}, T, D)")
        self.shape: tuple[int, int] = (int(self._rows.shape[1]), int(self._rows.shape[2]))

    def rows(self, indices: Tensor) -> Tensor:
        """Features (B, T, D) in float32."""
        return torch.from_numpy(np.asarray(self._rows[indices.numpy()], dtype=np.float32))


def read_index(folder: Path) -> dict[str, Any]:
    """What `features.json` says. Raises: UserError where it is missing or damaged."""
    file = folder / INDEX_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no features (no {INDEX_FILE}); make some with scripts/cache_features.py")
    index = read_json(file)
    if not all(isinstance(index.get(name), int) for name in ("num", "done")):
        raise UserError(f"{file} is damaged: it must hold num and done, whole numbers")
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
