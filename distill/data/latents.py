"""Image latents of an autoencoder, in the layout that REPA's `dataset_tools.py` writes."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar.checksums import CHECKSUMS_FILE, read_checksums
from distill.conditions import ClassLabels
from distill.data.base import Noise, register
from distill.errors import reading
from distill.files import say_unchecked
from distill.files.bounded import check_ratio, npy_from_bytes
from distill.latents.space import LatentSpace

FOLDER = "vae-sd"
LABELS_FILE = "dataset.json"


class LatentDataset:
    """z = (mean + std * noise - shift) * scale, with new noise at each access. Files are read at each access.

    Each file is a float array (8, h, w), in older sets (1, 8, h, w), of videos (8, f, h, w): the posterior's mean, then
    its standard deviation (not the log-variance), 4 channels each, unscaled. Channels, scale and shift are SD-VAE's
    unless dataset.json gives others under `vae`, as `distill.data.caching` writes it.

    Raises: ValueError, which names the file, if it is missing, damaged, or not such an array.
    """

    def __init__(self, files: _Files) -> None:
        self._files = files
        self._names, self.labels, self.space, classes = _read_listing(files)
        num_classes = int(self.labels.max()) + 1 if len(self._names) else 0
        if classes is not None and len(classes) < num_classes:
            where = files.describe(LABELS_FILE)
            raise ValueError(f"{where} names {len(classes)} classes; labels go to {num_classes - 1}")
        class_names = None if classes is None else tuple(classes[:num_classes])
        self.condition = ClassLabels(num_classes, class_names=class_names)
        self._sums = files.sums(self._names)
        self.sample_shape: tuple[int, ...] = (self.space.channels, 0, 0)
        if self._names:
            self.sample_shape = (self.space.channels, *self._moments(0).shape[1:])

    def __len__(self) -> int:
        return len(self._names)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        moments = torch.stack([self._checked(i) for i in indices.tolist()])
        mean, std = moments.chunk(2, dim=1)
        return self.space.latents(mean + std * noise(mean.shape)), self.labels[indices]

    def _checked(self, index: int) -> Tensor:
        moments = self._moments(index)
        if moments.shape[1:] != self.sample_shape[1:]:
            raise ValueError(
                f"{self._files.describe(self._names[index])} has shape {tuple(moments.shape)}; "
                f"{self._names[0]} has {(2 * self.space.channels, *self.sample_shape[1:])}, and all must be alike"
            )
        return moments

    def _moments(self, index: int) -> Tensor:
        """Mean and standard deviation, (2 channels, h, w) or (2 channels, f, h, w) in float32."""
        where, rows = self._files.describe(self._names[index]), 2 * self.space.channels
        with reading(Path(where), "is no whole npy file"):
            content = self._files.read(self._names[index])
            array = npy_from_bytes(content)
        if self._sums is not None and _start_of(hashlib.sha256(content).hexdigest()) != self._sums[index]:
            raise ValueError(f"{where} is not as it was written: it is damaged, or was edited; cache it again")
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        if array.ndim not in (3, 4) or array.shape[0] != rows or array.dtype.kind != "f":
            raise ValueError(
                f"{where} holds {array.dtype} of shape {array.shape}; expected float ({rows}, h, w), of videos "
                f"({rows}, f, h, w), mean then std"
            )
        moments = torch.from_numpy(array.astype(np.float32))
        if not bool(moments.isfinite().all()):
            raise ValueError(f"{where} holds values that are not finite")
        if (moments[rows // 2 :] < 0).any():
            raise ValueError(
                f"{where}: channels {rows // 2} to {rows - 1} must be standard deviations, and some are negative"
            )
        return moments


class _Files:
    """Reads files by their relative name from a folder or from an (uncompressed) zip."""

    def __init__(self, path: Path) -> None:
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            inner = path / FOLDER
            self._root = inner if (inner / LABELS_FILE).is_file() else path
            found = (self._root / LABELS_FILE).is_file()
        elif path.is_file():
            self._root = path
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"data.path = {path} is neither a folder nor a whole zip file: {error}") from error
            names = set(self._zip.namelist())
            self._prefix = "" if LABELS_FILE in names else f"{FOLDER}/"
            found = self._prefix + LABELS_FILE in names
        else:
            raise FileNotFoundError(f"data.path = {path} does not exist")
        if not found:
            raise FileNotFoundError(f"data.path = {path} holds neither {LABELS_FILE} nor {FOLDER}/{LABELS_FILE}")

    def sums(self, names: Sequence[str]) -> np.ndarray | None:
        """How the checksum of each file begins; None where there are none, and in a zip, which has its own."""
        sums = None if self._zip is not None else read_checksums(self._root)
        if sums is None:
            if self._zip is None:
                say_unchecked(self._root)
            return None
        missing = next((name for name in names if name not in sums), None)
        if missing is not None:
            raise ValueError(f"{self._root / CHECKSUMS_FILE} does not name {missing}, which {LABELS_FILE} does")
        return np.fromiter((_start_of(sums[name]) for name in names), np.uint64, len(names))

    def describe(self, name: str) -> str:
        return str(self._root / name)

    def read(self, name: str) -> bytes:
        """Raises: OSError or BadZipFile if the file cannot be read."""
        if self._zip is None:
            return (self._root / name).read_bytes()
        try:
            info = self._zip.getinfo(self._prefix + name)
        except KeyError as error:
            raise ValueError(f"the zip file has no {self._prefix}{name}") from error
        check_ratio(info.compress_size, info.file_size)
        return self._zip.read(info)


def _start_of(checksum: str) -> int:
    """Eight bytes of it: they take no memory worth speaking of for millions of files."""
    return int(checksum[:16], 16)


def listing(labelled: list[tuple[str, int]], space: LatentSpace, classes: Sequence[str] | None = None) -> str:
    """Content of dataset.json: files with their labels, in order, the space of their latents, names of classes."""
    named = {} if classes is None else {"classes": list(classes)}
    return json.dumps({"labels": labelled, "vae": asdict(space), **named})


def _read_listing(files: _Files) -> tuple[list[str], Tensor, LatentSpace, list[str] | None]:
    """Files, labels, space and names of classes; REPA writes the labels alone, {"labels": [[name, label], ...]}."""
    where = files.describe(LABELS_FILE)
    try:
        read = json.loads(files.read(LABELS_FILE))
        pairs = read["labels"]
        names, labels = [str(name) for name, _ in pairs or []], [label for _, label in pairs or []]
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f'{where} is not {{"labels": [[file, label], ...]}}: {error!r}') from error
    if pairs is None or None in labels:
        raise ValueError(f"{where} has files without a label; labels are needed (convert a set that has classes)")
    wrong = [label for label in labels if not isinstance(label, int) or isinstance(label, bool) or label < 0]
    if wrong:
        raise ValueError(f"{where}: labels must be whole numbers from 0; got {wrong[0]!r}")
    classes = read.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"{where}: classes must be a list of names")
    return names, torch.tensor(labels, dtype=torch.int64), _space(read.get("vae", {}), where), classes


def _space(values: Any, where: str) -> LatentSpace:
    try:
        return LatentSpace(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: vae must hold channels, scale and shift; got {values!r}: {error}") from error


@register("latents")
def load_latents(path: Path, split: str) -> LatentDataset:
    """Load a folder DATA with DATA/vae-sd/dataset.json, that vae-sd folder itself, or a zip file of either.

    The layout has no splits: all of it serves as `train` and as `test`.
    """
    return LatentDataset(_Files(path))
