"""Reading a .pt file without running it, and without reading more of it than is used."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from dar.checkpoints.printable import printable

ZIP_MAGIC = b"PK\x03\x04"
_REFUSED = re.compile(r"(?:GLOBAL|function|class|instantiate)\s+(<[^>]*>|[\w.]+)")


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors, containers, and an `argparse.Namespace`; nothing else is ever made.

    Tensors are mapped, not read, wherever the file allows it (torch's zip files do, those before 1.6 don't), so
    they cost memory when they are used. A file must not be changed while a model that was made from it is alive.

    Raises: FileNotFoundError; ValueError naming the file where it is damaged, no checkpoint, or asks to run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # torch's reader meets arbitrary bytes with arbitrary exceptions
        reason = (str(error).splitlines() or [""])[0].split(". ")[0]
        raise ValueError(
            f"{path} is damaged or no PyTorch checkpoint: {type(error).__name__}: {printable(reason)}"
        ) from error


def _refusal(path: Path, message: str) -> str:
    """torch's page on `weights_only`, in one line."""
    found = _REFUSED.search(message)
    if found:
        asked = printable(found.group(1).rstrip("."))
        return f"{path} asks to run {asked}; only tensors and training arguments are read, so it is refused"
    lines = [line.strip() for line in message.splitlines() if "UnpicklingError" in line or "WeightsUnpickler" in line]
    reason = lines[0] if lines else "it does not unpickle"
    return f"{path} is damaged, no PyTorch checkpoint, or holds more than tensors, and is refused: {printable(reason)}"
