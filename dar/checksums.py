"""Checksums of the files in a folder, written with them and checked when they are read.

FOLDER/checksums.json holds {file: SHA-256} for the files beside and below it. Who changes a file on purpose removes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CHECKSUMS_FILE = "checksums.json"
_WHOLE: set[tuple[str, int, int, str]] = set()
"""Files that this process has found whole: a model that is loaded several times is read once for it."""
WORKERS = 4  # hashing lets other threads run; more of them wait for the disk


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; the file is read once, in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of some files of a folder, by name."""
    names = list(names)
    with ThreadPoolExecutor(WORKERS) as pool:
        return dict(zip(names, pool.map(lambda name: checksum(folder / name), names), strict=True))


def files_below(folder: Path) -> list[str]:
    """Names of all files in a folder and below it that have a checksum: all but what people alone read."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS_FILE, "README.md"))
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def write_checksums(folder: Path, sums: dict[str, str] | None = None) -> None:
    """Write `checksums.json`, of all files below `folder` where `sums` are not known already."""
    sums = checksums(folder, files_below(folder)) if sums is None else sums
    (folder / CHECKSUMS_FILE).write_text(json.dumps(dict(sorted(sums.items())), indent=1) + "\n")


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Checksums by name; None in a folder without, which an earlier version or others wrote.

    Raises: ValueError where the file is damaged.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return None
    try:
        sums = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; remove it to read the folder unchecked") from error
    if not isinstance(sums, dict) or not all(isinstance(value, str) for value in sums.values()):
        raise ValueError(f"{path} is damaged: it must hold a checksum by the name of each file")
    return sums


def _state(path: Path, expected: str) -> tuple[str, int, int, str]:
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns, expected


def check_checksums(folder: Path, share: tuple[int, int] = (0, 1)) -> None:
    """See that every file of `folder` is as it was written; a folder without checksums is not checked.

    Args:
        share: (i, n), so that n processes look at every n-th file each.

    Raises: ValueError, which names the file that is missing or was changed and says how to accept the change.
    """
    sums = read_checksums(folder)
    if sums is None:
        return
    mine = sorted(sums)[share[0] :: share[1]]
    for name in mine:
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {CHECKSUMS_FILE} beside it names it")
    states = {name: _state(folder / name, sums[name]) for name in mine}
    for name, found in checksums(folder, [name for name in mine if states[name] not in _WHOLE]).items():
        if found == sums[name]:
            _WHOLE.add(states[name])
        else:
            raise ValueError(
                f"{folder / name} is not as it was written (SHA-256 {found[:8]}.., not {sums[name][:8]}..): it is "
                f"damaged, or was edited; to accept it as it is, remove {folder / CHECKSUMS_FILE}"
            )
