"""idx files, the format of MNIST and Fashion-MNIST, gzipped or not."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.conditions import ClassLabels
from distill.data.base import Noise, register
from distill.errors import reading
from distill.files.bounded import unpacked_gzip

PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def read_idx(path: str | Path) -> np.ndarray:
    """The array of unsigned bytes in an idx file, (N) or (N, H, W).

    Raises: ValueError, which names the file, if it is not such a file or is truncated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with reading(path, "cannot be unpacked"):
        data = unpacked_gzip(path) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes (it begins {data[:4].hex() or 'empty'})")
    num_axes = data[3]
    if len(data) < 4 + 4 * num_axes:
        raise ValueError(f"{path} is cut short within its header")
    shape = struct.unpack(f">{num_axes}I", data[4 : 4 + 4 * num_axes])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes)
    if values.size != math.prod(shape):
        raise ValueError(f"{path} should hold {shape} = {math.prod(shape)} bytes and holds {values.size}")
    return values.reshape(shape)


def _find(folder: Path, split: str, kind: str) -> Path:
    for prefix in PREFIXES[split]:
        for suffix in ("", ".gz"):
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            if path.is_file():
                return path
    names = " or ".join(f"{prefix}-{kind}-ubyte[.gz]" for prefix in PREFIXES[split])
    raise FileNotFoundError(f"data.path = {folder} holds no {names}")


class IdxDataset:
    """A data set that holds all images in memory as bytes."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(f"images {images.shape} and labels {labels.shape} do not belong together")
        self.images = torch.from_numpy(images.copy())
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.sample_shape: tuple[int, int, int] = (1, images.shape[1], images.shape[2])
        self.condition = ClassLabels(int(labels.max()) + 1 if len(labels) else 0)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        images = self.images[indices].float().div_(127.5).sub_(1).unsqueeze(1)
        return images, self.labels[indices]


@register("idx")
def load_idx(path: Path, split: str) -> IdxDataset:
    """Load a folder with `{train,t10k}-images-idx3-ubyte[.gz]` and the matching label files.

    Debian's package dataset-fashion-mnist puts Fashion-MNIST into /usr/share/datasets/fashion-mnist;
    `torchvision.datasets.FashionMNIST(root, download=True)` puts it into root/FashionMNIST/raw.
    """
    return IdxDataset(read_idx(_find(path, split, "images-idx3")), read_idx(_find(path, split, "labels-idx1")))
