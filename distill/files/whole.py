"""Files and folders that are there whole or not at all, also after a power cut.

They are written under a name that nobody else has, synchronised to the disk, and then renamed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.errors import UserError, reading, writing

log = logging.getLogger("distill")


KINDS = {int: "a whole number", float: "a number", str: "a text", list: "a list", dict: "a mapping"}


def read_json(file: Path, kinds: Mapping[str, type] | None = None) -> dict[str, Any]:
    """The mapping in a JSON file.

    kinds: of `KINDS`, by the names that it must hold.

    Raises: UserError where it is damaged, which names the field; FileNotFoundError where it is missing.
    """
    content = file.read_bytes()
    with reading(file):
        read = json.loads(content)
        if not isinstance(read, dict):
            raise TypeError(f"it must hold a mapping of names to values; it holds a {type(read).__name__}")
        for name, kind in (kinds or {}).items():
            if name not in read:
                raise ValueError(f"it lacks {name}, {KINDS[kind]}")
            if type(read[name]) is not kind and (kind, type(read[name])) != (float, int):
                raise ValueError(f"{name} must be {KINDS[kind]}; got {read[name]!r}")
        return read


_UNCHECKED: set[Path] = set()
"""Folders of which it was said that they have no checksums."""


def check_whole(folder: Path) -> None:
    """See that the files of a folder are as they were written; of one without checksums it is said that none are.

    Raises: ValueError, which names the file.
    """
    from dar.checksums import check_checksums, read_checksums

    if read_checksums(folder) is None:
        say_unchecked(folder)
    check_checksums(folder)


def say_unchecked(folder: Path, name: str = "checksums.json") -> None:
    """Say, once, that a folder's files are read as they are. name: of the file that is not there."""
    if folder.is_dir() and folder.resolve() not in _UNCHECKED:
        _UNCHECKED.add(folder.resolve())
        log.info(f"{folder} has no {name}, as others or earlier versions write it: its files are not checked")


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing has: a hidden one, so that it is seen to be unfinished."""
    return path.with_name(f".{path.name}-{secrets.token_hex(6)}.partial")


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write under a temporary name, then rename. sync: not to be waited for where the caller syncs many at once."""
    write_files(path.parent, {path.name: data}, sync=sync)


def write_files(folder: Path, files: Mapping[str, bytes], *, sync: bool = True) -> None:
    """Write files into a folder, which is made if there is none: all of them lie there before the first is renamed.

    They get their names in order, so that the last speaks for all. sync: as in `write_bytes`.
    """
    partial = {name: temporary_name(folder / name) for name in files}
    with writing(folder / next(iter(files))):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name, data in files.items():
                with partial[name].open("xb") as file:
                    file.write(data)
                    if sync:
                        file.flush()
                        os.fsync(file.fileno())
            for name, temporary in partial.items():
                temporary.replace(folder / name)
        except BaseException:
            for temporary in partial.values():
                temporary.unlink(missing_ok=True)
            raise
        if sync:
            synchronise(folder)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill(temporary)` write a folder, then call it `folder`, which is new or empty.

    Raises: UserError where something is there by then; what `fill` raises. Nothing is left in either case.
    """
    with _filled(folder, fill) as partial:
        try:
            partial.rename(folder)  # which the system refuses where there is something
        except OSError as error:
            raise UserError(f"{folder} is not empty: another call wrote into it meanwhile") from error


def replace_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """As `write_folder`, in the place of what an earlier call made within a folder that this process has claimed.

    What that call made its checksums name; whatever else lies there is taken along. Where that cannot be, since there
    are no checksums, or a file of the same name is made now, the whole folder is kept beside the new one.
    """
    with _filled(folder, fill) as partial:
        if folder.exists() and not _take_along(folder, partial):
            kept = folder.with_name(f"{folder.name}.before-{secrets.token_hex(3)}")
            folder.rename(kept)
            log.info(f"{folder}: what was there is in {kept}, since not all of it was made here")
        put_in_place(partial, folder)


def _take_along(before: Path, after: Path) -> bool:
    """Copy what others put into a folder. Returns: whether all of that is in the new one."""
    from dar.checksums import files_below, read_checksums

    sums = read_checksums(before)
    theirs = [name for name in files_below(before) if sums is None or name not in sums]
    if sums is None or any((after / name).exists() for name in theirs):
        return False
    for name in theirs:
        (after / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(before / name, after / name)
        synchronise(after / name)
    return True


def put_in_place(partial: Path, folder: Path) -> None:
    """Give a sealed folder its name, in the place of an earlier one."""
    before = temporary_name(folder)
    if folder.exists():
        folder.rename(before)
    partial.rename(folder)
    synchronise(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def seal_folder(folder: Path, sums: dict[str, str] | None = None) -> None:
    """Write checksums of a folder's files, where `sums` are not known, and see that all of it is on the disk.

    Only folders with weights get them: pictures and pages are for people, and nothing rests on them.
    """
    from dar.checksums import CHECKSUMS_FILE, write_checksums  # which takes torch along

    if sums is not None or any(folder.rglob("*.safetensors")):
        write_checksums(folder, sums)
    for path in [folder / CHECKSUMS_FILE, folder] if sums is not None else [*folder.rglob("*"), folder]:
        synchronise(path)


def seal_files(folder: Path, names: Collection[str], fresh: Container[str]) -> None:
    """`seal_folder` of files by name, of which `fresh` were written just now and others may have their checksums."""
    from dar.checksums import checksums, read_checksums

    there = read_checksums(folder) or {}
    sums = checksums(folder, [name for name in names if name in fresh or name not in there])
    for name in sums:
        synchronise(folder / name)
    seal_folder(folder, {name: {**there, **sums}[name] for name in names})


def synchronise(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Some file systems know no such thing of folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _filled(folder: Path, fill: Callable[[Path], object]) -> Iterator[Path]:
    """A sealed folder beside `folder`; removed where it does not get its name."""
    partial = temporary_name(folder)
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            fill(partial)
            seal_folder(partial)
            yield partial
            synchronise(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # what a full disk is to it
            raise UserError(f"{folder} could not be written: {error}") from error
        raise
