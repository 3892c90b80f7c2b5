"""Arrays in files that may say anything of themselves: no more memory is asked for than a file can fill."""

from __future__ import annotations

import gzip
import io
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from distill.errors import writing

ALWAYS = 2**26  # bytes that a packed file may become, however small it is
MOST_RATIO = 100  # of unpacked to packed bytes beyond that: data have about 2, and what is made to harm 1000


def check_ratio(packed: int, unpacked: int) -> None:
    """Raises: ValueError where a packed file would become larger than data do."""
    if unpacked > max(ALWAYS, MOST_RATIO * packed):
        raise ValueError(f"its {packed:,} bytes would become {unpacked:,}, more than {MOST_RATIO} times as many")


def unpacked_gzip(path: Path) -> bytes:
    """The content of a gzip file. Raises: ValueError where it is too much; what gzip raises where it is damaged."""
    packed = path.stat().st_size
    parts: list[bytes] = []
    with gzip.open(path) as file:
        while part := file.read(2**22):
            parts.append(part)
            check_ratio(packed, sum(map(len, parts)))
    return b"".join(parts)


def npy_array(file: IO[bytes], size: int) -> np.ndarray:
    """The array in a file in numpy's format of `size` bytes, which can be read twice; pickles are refused.

    Raises: ValueError where it declares more or less than there is.
    """
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not dtype.hasobject and declared != there:
        raise ValueError(f"it declares {shape} of {dtype}, {declared:,} bytes, and holds {there:,}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def npy_from_bytes(content: bytes) -> np.ndarray:
    """As `npy_array`."""
    return npy_array(io.BytesIO(content), len(content))


def new_npy(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new file in numpy's format, as an array that is written part by part.

    Its room is taken at once: a mapped file that finds the disk full ends the process, without a word.

    Raises: UserError where there is no room.
    """
    array = None
    with writing(path):
        try:
            array = np.lib.format.open_memmap(path, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except BaseException:
            del array  # what is mapped keeps its room
            path.unlink(missing_ok=True)
            raise
    return array


def npz_names(path: Path) -> list[str]:
    """Names of the arrays in a .npz file. Raises: BadZipFile or OSError where it is none."""
    with zipfile.ZipFile(path) as file:
        return [name.removesuffix(".npy") for name in file.namelist()]


def npz_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a .npz file by name: of `names`, those that are there, or all.

    Raises: BadZipFile, OSError, zlib.error or ValueError, without the file's name, where it is damaged.
    """
    with zipfile.ZipFile(path) as file:
        check_ratio(path.stat().st_size, sum(info.file_size for info in file.infolist()))
        entries = {info.filename.removesuffix(".npy"): info for info in file.infolist()}
        arrays = {}
        for name in entries if names is None else [name for name in names if name in entries]:
            with file.open(entries[name]) as entry:
                arrays[name] = npy_array(entry, entries[name].file_size)
    return arrays
