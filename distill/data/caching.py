"""Latents of an image set, encoded once and written in REPA's layout, which `LatentDataset` and REPA read.

    TARGET/vae-sd/00000/img-mean-std-00000000.npy   float32 (2 channels, h, w): the posterior's mean, then its std
    TARGET/vae-sd/dataset.json                      labels and latent space; written last, when the set is complete
    TARGET/vae-sd/cache.json                        the settings that the files depend on; written first

File i is image i. With mirrored images, file N + i is the mirror image of image i.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dar.checksums import checksums, read_checksums, write_checksums
from distill.data.base import Dataset
from distill.data.latents import FOLDER, LABELS_FILE, listing
from distill.errors import UserError
from distill.files import write_bytes, write_text
from distill.files.folders import contents
from distill.latents.vae import Vae

SETTINGS_FILE = "cache.json"


@dataclass(frozen=True)
class Cache:
    """Where the latents of a set are written and what they are computed from.

    source: `fingerprint` of the files that `images` come from.
    """

    target: Path
    images: Dataset
    vae: Vae
    source: str
    dtype: str
    flip: bool

    @property
    def folder(self) -> Path:
        return self.target / FOLDER

    @property
    def num_files(self) -> int:
        return len(self.images) * (2 if self.flip else 1)

    @property
    def file_size(self) -> int:
        shape = self.vae.latent_shape(self.images.sample_shape)
        return len(npy_bytes(np.zeros((2 * shape[0], *shape[1:]), np.float32)))

    def settings(self) -> dict[str, Any]:
        """Everything that determines the content of the files, except the device."""
        return {
            "source": self.source,
            "num_images": len(self.images),
            "image_shape": list(self.images.sample_shape),
            "flip": self.flip,
            "vae": {"weights": self.vae.fingerprint(), **asdict(self.vae.space)},
            "dtype": self.dtype,
        }

    def missing(self) -> list[int]:
        """Numbers of the files that are missing or not of full size."""
        size = self.file_size
        paths = (self.folder / file_name(index) for index in range(self.num_files))
        return [i for i, path in enumerate(paths) if not path.is_file() or path.stat().st_size != size]

    def image(self, index: int) -> Tensor:
        """Image (C, H, W) in [-1, 1]; from number N on mirrored, left to right."""
        copy, number = divmod(index, len(self.images))
        images, _ = self.images.batch(torch.tensor([number]), torch.randn)
        return images[0].flip(-1) if copy else images[0]


def file_name(index: int) -> str:
    """REPA's file names: a thousand files per folder."""
    return f"{index:08d}"[:5] + f"/img-mean-std-{index:08d}.npy"


def npy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def claim(cache: Cache) -> list[int]:
    """Start or continue a cache; returns the numbers of the files to write.

    Raises: UserError if the folder holds another cache; it names what differs.
    """
    settings = json.loads(json.dumps(cache.settings()))  # as the file has them: lists, no tuples
    path = cache.folder / SETTINGS_FILE
    if path.is_file():
        try:
            begun = json.loads(path.read_text())
            different = [key for key in settings if begun[key] != settings[key]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: {error!r}; remove {cache.folder}") from error
        if different:
            key = different[0]
            raise UserError(
                f"{cache.folder} was begun with {key} = {begun[key]}; now it is {settings[key]}. "
                "Choose another folder or remove it"
            )
    elif contents(cache.folder):
        raise UserError(f"{cache.folder} is not empty and holds no {SETTINGS_FILE}; choose another folder or remove it")
    else:
        write_text(path, json.dumps(settings, indent=1) + "\n")
    return cache.missing()


def write_latents(
    cache: Cache, missing: Sequence[int], batch_size: int, workers: int, advance: Callable[[int], object]
) -> None:
    """Encode and write the `missing` files, each atomically, then checksums of all, then dataset.json.

    Args:
        workers: threads that read images.
        advance: called after each batch with its number of files.

    Raises: UserError or ValueError as the images and `Vae.moments`; files already written stay.
    """
    sums = dict(read_checksums(cache.folder) or {})
    batches = [missing[first : first + batch_size] for first in range(0, len(missing), batch_size)]
    for indices, images in zip(batches, _read_ahead(cache.image, batches, workers), strict=True):
        moments = cache.vae.moments(torch.stack(images)).cpu().numpy()
        for index, array in zip(indices, moments, strict=True):
            content = npy_bytes(array)
            write_bytes(
                cache.folder / file_name(index), content, sync=False
            )  # one by one that takes longer than all else
            sums[file_name(index)] = hashlib.sha256(content).hexdigest()
        advance(len(indices))
    labels = cache.images.labels.tolist() * (2 if cache.flip else 1)
    os.sync()
    earlier = [name for index in range(cache.num_files) if (name := file_name(index)) not in sums]  # of a stopped call
    write_checksums(cache.folder, sums | checksums(cache.folder, earlier))
    labelled = [(file_name(index), label) for index, label in enumerate(labels)]
    classes = getattr(cache.images.condition, "class_names", None)
    write_text(cache.folder / LABELS_FILE, listing(labelled, cache.vae.space, classes))


def _read_ahead(
    read: Callable[[int], Tensor], batches: Sequence[Sequence[int]], workers: int
) -> Iterator[list[Tensor]]:
    """Results of `read`, batch by batch; the next batch is read while the caller works on the current one."""
    ahead: deque[list[Future[Tensor]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for batch in batches:
            ahead.append([pool.submit(read, index) for index in batch])
            if len(ahead) > 1:
                yield [future.result() for future in ahead.popleft()]
        for futures in ahead:
            yield [future.result() for future in futures]
