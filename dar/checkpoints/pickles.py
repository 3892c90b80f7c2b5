"""Reading pickles without running them, and without reading more of them than is used. No other door is taken.

A pickle names functions that are called while it is read. What may be named is said here once, for every file that we
or a library below us open: tensors, containers, arrays of numbers and an `argparse.Namespace`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import re
import warnings
from codecs import encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dar.checkpoints.printable import printable

ZIP_MAGIC = b"PK\x03\x04"
_REFUSED = re.compile(r"(?:GLOBAL|function|class|instantiate)\s+(<[^>]*>|[\w.]+)")
_FORCED, _FORCED_OFF = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

_NUMBERS = "?bBhHiIlLqQefdFD"  # numpy's letters for types of numbers; of objects there is none
ALLOWED: list[Any] = [
    argparse.Namespace,
    encode,  # how bytes of an array are written
    np.ndarray,
    np.dtype,
    *{type(np.dtype(letter)) for letter in _NUMBERS},
    *((np.zeros(1).__reduce__()[0], f"{module}.multiarray._reconstruct") for module in ("numpy._core", "numpy.core")),
    *((np.float64(0).__reduce__()[0], f"{module}.multiarray.scalar") for module in ("numpy._core", "numpy.core")),
]
"""What a file of `torch.save` may name beside tensors and containers."""

_METADATA = "torch.distributed.checkpoint.metadata"
ALLOWED_IN_INDEX = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
}
"""What the index of a sharded checkpoint may name beside types of tensors."""


@contextlib.contextmanager
def only_allowed() -> Iterator[None]:
    """Within it every `torch.load`, also one that a library asks to run what it reads, makes nothing but `ALLOWED`."""
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORCED_OFF)}
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(ALLOWED):
            yield
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def read_pickle(path: Path) -> Any:
    """What `torch.save` wrote: tensors, containers, arrays, and an `argparse.Namespace`; nothing else is ever made.

    Tensors are mapped, not read, wherever the file allows it (torch's zip files do, those before 1.6 don't), so
    they cost memory when they are used. A file must not be changed while a model that was made from it is alive.

    Raises: FileNotFoundError; ValueError naming the file where it is damaged, no checkpoint, or asks to run code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    with path.open("rb") as file:
        is_zip = file.read(4) == ZIP_MAGIC
    try:
        with warnings.catch_warnings(), only_allowed():
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise ValueError(refusal(path, error)) from error
    except Exception as error:  # torch's reader meets arbitrary bytes with arbitrary exceptions
        reason = (str(error).splitlines() or [""])[0].split(". ")[0]
        raise ValueError(
            f"{path} is damaged or no PyTorch checkpoint: {type(error).__name__}: {printable(reason)}"
        ) from error


def check_index(path: Path) -> None:
    """See that the index of a sharded checkpoint, `.metadata`, which torch reads as it is, asks to run nothing.

    Raises: ValueError, which names the file, where it does or is damaged.
    """

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if (module, name) == ("builtins", "getattr"):
                return _member
            if not is_type and (module, name) not in ALLOWED_IN_INDEX:
                raise _AskedError(f"{module}.{name}")
            return super().find_class(module, name)

    try:
        with path.open("rb") as file:
            Reader(file).load()
    except _AskedError as error:
        raise ValueError(_asks(path, str(error))) from error
    except OSError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {printable(str(error)[:200])}") from error


def check_pickles(folder: Path) -> None:
    """See that no file below `folder`, a checkpoint, asks to run code when it is read. Raises: as `read_pickle`."""
    for path in sorted(folder.rglob("*")):
        if path.name == ".metadata":
            check_index(path)
        elif path.suffix in (".bin", ".pkl", ".pt", ".pth"):
            read_pickle(path)


def refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """torch's page on `weights_only`, in one line."""
    message = str(error)
    found = _REFUSED.search(message)
    if found:
        return _asks(path, found.group(1).rstrip("."))
    lines = [line.strip() for line in message.splitlines() if "UnpicklingError" in line or "WeightsUnpickler" in line]
    reason = lines[0] if lines else "it does not unpickle"
    return f"{path} is damaged, no PyTorch checkpoint, or holds more than tensors, and is refused: {printable(reason)}"


def _member(kind: Any, name: Any) -> Any:
    """What `getattr` is for in an index: Python 3.11.2, of Debian 12, writes members of enumerations as calls of it."""
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING  # which takes long

    if kind is not _MEM_FORMAT_ENCODING or name not in _MEM_FORMAT_ENCODING.__members__:
        raise _AskedError("builtins.getattr")
    return _MEM_FORMAT_ENCODING[name]


class _AskedError(Exception):
    """The name of what a pickle asks for and may not have."""


def _asks(path: Path, name: str) -> str:
    return f"{path} asks to run {printable(name)}; only tensors and training arguments are read, so it is refused"
