"""Looking at a model folder before anything is built from it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors import SafetensorError, safe_open

from dar.checksums import check_checksums

C = TypeVar("C")
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def check_folder(folder: Path, config_type: type[C]) -> C:
    """Refuse a folder that is missing, incomplete, damaged, changed by hand, or written by a newer version.

    Returns: its configuration.

    Raises: FileNotFoundError or ValueError, each naming the file and what is wrong with it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}")
    check_checksums(folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG_FILE} must hold an object of fields; it holds a {type(config).__name__}")
    known = {field.name for field in fields(cast(Any, config_type))}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(f"{folder / CONFIG_FILE} has fields this version does not know: {', '.join(unknown)}")
    try:
        built = config_type(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} is no valid {config_type.__name__}: {error}") from error
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            weights.keys()
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} is damaged: {error}") from error
    return built
