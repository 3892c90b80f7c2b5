"""An encoder's features of a data set, computed once: what `repa.encoder = stored` learns from.

FOLDER/features.json   whose they are, and how many are there
FOLDER/features.npy    (N, T, D) in float16, row i of sample i
FOLDER/features_sha256.npy  (N), how the checksum of each row begins
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError, reading
from distill.files import read_json, say_unchecked, write_text
from distill.files.bounded import npy_from_bytes

INDEX_FILE, FEATURES_FILE = "features.json", "features.npy"
SUMS_FILE = "features_sha256.npy"


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
        self._file, self._sums = path / FEATURES_FILE, _read_sums(path, num)
        self.shape: tuple[int, int] = (int(self._rows.shape[1]), int(self._rows.shape[2]))

    def rows(self, indices: Tensor) -> Tensor:
        """Features (B, T, D) in float32. Raises: UserError where one is not as it was written."""
        rows = np.asarray(self._rows[indices.numpy()])
        if self._sums is not None:
            wrong = indices.numpy()[row_sums(rows) != self._sums[indices.numpy()]]
            if len(wrong):
                raise UserError(
                    f"{self._file} is not as it was written: row {wrong[0]} is damaged, or was edited; make it again, "
                    f"or remove {SUMS_FILE} beside it to accept it as it is"
                )
        return torch.from_numpy(rows.astype(np.float32))


def row_sums(rows: np.ndarray) -> np.ndarray:
    """The first 8 bytes of the SHA-256 of each row of (N, T, D), in uint64 (N)."""
    digests = (hashlib.sha256(row.tobytes()).digest()[:8] for row in rows)
    return np.fromiter((int.from_bytes(digest, "little") for digest in digests), np.uint64, len(rows))


def _read_sums(folder: Path, num: int) -> np.ndarray | None:
    if not (folder / SUMS_FILE).is_file():
        say_unchecked(folder, SUMS_FILE)
        return None
    with reading(folder / SUMS_FILE):
        sums = npy_from_bytes((folder / SUMS_FILE).read_bytes())
        if sums.shape != (num,) or sums.dtype != np.uint64:
            raise ValueError(f"it holds {sums.dtype} of {sums.shape}; expected uint64 of ({num},)")
    return sums


def read_index(folder: Path) -> dict[str, Any]:
    """What `features.json` says. Raises: UserError where it is missing or damaged."""
    file = folder / INDEX_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no features (no {INDEX_FILE}); make some with scripts/cache_features.py")
    return read_json(file, {"encoder": str, "made_from": str, "num": int, "done": int})


def write_index(folder: Path, index: dict[str, Any]) -> None:
    write_text(folder / INDEX_FILE, json.dumps(index, indent=2) + "\n")
