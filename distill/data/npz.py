"""Images and labels in one .npz file, in the format of ADM's sampling scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.conditions import ClassLabels
from distill.data.base import Noise, register
from distill.errors import reading
from distill.files.bounded import npz_arrays, npz_names

NAMES = (("images", "labels"), ("arr_0", "arr_1"))


class NpzDataset:
    """A data set that holds all images in memory as bytes.

    Args:
        images: (N, H, W, C) or (N, H, W), H = W, C 1 or 3, unsigned bytes.
        labels: (N), integers from 0.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[1] != images.shape[2]:
            raise ValueError(f"images are {images.dtype} {images.shape}; expected square unsigned bytes (N, H, W, C)")
        images = images.reshape(*images.shape[:3], -1)
        if images.shape[3] not in (1, 3):
            raise ValueError(f"images have {images.shape[3]} channels; expected 1 or 3, the last axis")
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or (labels < 0).any():
            raise ValueError(f"labels are {labels.dtype} {labels.shape}; expected {len(images)} whole numbers from 0")
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.sample_shape: tuple[int, int, int] = (images.shape[3], images.shape[1], images.shape[2])
        self.condition = ClassLabels(int(labels.max()) + 1 if len(labels) else 0)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.images[indices].float().div_(127.5).sub_(1), self.labels[indices]


def read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels of a file with `images` and `labels`, or with ADM's `arr_0` and `arr_1`; None without labels.

    Raises: FileNotFoundError; ValueError, which names the file, if it is damaged or has no images; pickles are refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.path = {path} is not a file")
    with reading(path, "cannot be read"):
        there = npz_names(path)
        names = next((pair for pair in NAMES if pair[0] in there), None)
        if names is None:
            raise ValueError(f"it holds {', '.join(there) or 'nothing'}; expected images and labels")
        arrays = npz_arrays(path, names)
        return arrays[names[0]], arrays.get(names[1])


def npz_dataset(path: Path, images: np.ndarray, labels: np.ndarray) -> NpzDataset:
    """The arrays of the file `path` as a data set. Raises: ValueError, which names the file."""
    try:
        return NpzDataset(images, labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@register("npz")
def load_npz(path: Path, split: str) -> NpzDataset:
    """Load a file of `read_npz` with labels; it has no splits.

    Raises: as `read_npz`; ValueError if there are no labels.
    """
    images, labels = read_npz(path)
    if labels is None:
        raise ValueError(f"{path} cannot be read: it holds images without labels; expected images and labels")
    return npz_dataset(path, images, labels)
