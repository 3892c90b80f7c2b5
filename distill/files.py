"""Files that are there whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from distill.errors import UserError


def new_folder(path: str, name: str = "--output", begun: str = "") -> Path:
    """`path` as a folder to be written, in which nothing but `begun`, what a stopped call left there to go on with, may
    lie. Raises: UserError naming the argument where something else is there.
    """
    folder = Path(path).expanduser().resolve()  # of "new/.." it would be found out too late that it is not new
    if folder.exists() and (not folder.is_dir() or any(entry.name != begun for entry in folder.iterdir())):
        raise UserError(f"{name} {folder} is not empty; choose another or remove it")
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file. Raises: UserError where it is damaged; FileNotFoundError where it is missing."""
    try:
        return dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}") from error


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill(temporary)` write a folder, then put it in the place of `folder`."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        fill(partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, SafetensorError):  # what a full disk is to it
            raise UserError(f"{folder} could not be written: {error}") from error
        raise
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
