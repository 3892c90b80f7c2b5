"""Random crops of large pictures, drawn anew at each access: a data set of a few photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from distill.conditions import ClassLabels
from distill.data.base import Dataset, Noise, register
from distill.data.images import image_files
from distill.errors import UserError

SIDE = 64
PER_PICTURE = 1000  # samples that a picture counts for
HELD_OUT = 0.25  # of the width, at the right of each picture: of the split `test`
MAX_BYTES = 8 * 2**30  # of all pictures together, in memory


class Crops:
    """Crop i is of picture i modulo their number, at a place that `noise` says.

    Subfolders are classes; where there are none, every picture is a class of its own.

    Args:
        pictures: (3, H, W) in uint8 each. labels: the class of each.
    """

    def __init__(self, pictures: list[Tensor], labels: list[int], names: list[str], side: int) -> None:
        self._pictures, self._side = pictures, side
        self.sample_shape: tuple[int, ...] = (3, side, side)
        self.labels = torch.tensor(labels).repeat(PER_PICTURE)
        self.condition = ClassLabels(len(names), class_names=tuple(names))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        places = torch.special.ndtr(noise(torch.Size([len(indices), 2]))).tolist()  # uniform in [0, 1]
        crops = [self._crop(i, *place) for i, place in zip(indices.tolist(), places, strict=True)]
        return torch.stack(crops).float() / 127.5 - 1, self.labels[indices]

    def _crop(self, index: int, down: float, across: float) -> Tensor:
        picture, side = self._pictures[index % len(self._pictures)], self._side
        top, left = (
            min(int(place * (size - side + 1)), size - side)
            for place, size in zip((down, across), picture.shape[1:], strict=True)
        )
        return picture[:, top : top + side, left : left + side]


@register("crops")
def load_crops(path: Path, split: str, size: int | None = None) -> Dataset:
    """Load the pictures of a folder; `size` is the side of a crop (64).

    The split `train` is the left three quarters of each picture, `test` the rest.

    Raises: ValueError, which names the file, if one is damaged, or too small for a crop; UserError if all together are
        too large to be held in memory; FileNotFoundError.
    """
    side = SIDE if size is None else size
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder")
    (files,) = image_files(path)
    if not files:
        raise ValueError(f"{path} holds no images")
    folders = sorted({str(file.parent.relative_to(path)) for file in files})
    names = folders if len(folders) > 1 else [file.stem for file in files]
    pictures, total = [], 0
    for file in files:
        pictures.append(_part(file, split, side))
        total += pictures[-1].numel()
        if total > MAX_BYTES:
            raise UserError(
                f"{path}: the pictures take more than {MAX_BYTES / 2**30:.0f} GiB; give fewer or smaller ones"
            )
    labels = [names.index(str(f.parent.relative_to(path))) if len(folders) > 1 else i for i, f in enumerate(files)]
    return Crops(pictures, labels, names, side)


def _part(file: Path, split: str, side: int) -> Tensor:
    try:
        with Image.open(file) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB")
            values = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise ValueError(f"{file} is damaged: {error}") from error
    border = round(values.shape[2] * (1 - HELD_OUT))
    part = values[:, :, border:] if split == "test" else values[:, :, :border]
    if min(part.shape[1:]) < side:
        raise ValueError(
            f"{file}: the part for {split} has {part.shape[2]} x {part.shape[1]} pixels, a crop {side}; give larger "
            "pictures, or a smaller data.size"
        )
    return part.contiguous()
