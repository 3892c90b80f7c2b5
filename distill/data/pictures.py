"""Any pictures of one size, to be measured: with or without classes, whoever made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill.data.base import Dataset, register
from distill.data.images import ImageFiles, image_files
from distill.data.npz import npz_dataset, read_npz

GRID = "grid.png"  # what `sample` writes beside its images


@register("pictures")
def load_pictures(path: Path, split: str, size: int | None = None) -> Dataset:
    """Load a .npz file (labels are not needed), or the images in a folder; subfolders with images are classes.

    Raises: ValueError, which names the file, if one is damaged or of another size; FileNotFoundError.
    """
    if path.suffix == ".npz":
        if size is not None:
            raise ValueError(f"data.size is for folders; the images of {path} are read as they are")
        images, labels = read_npz(path)
        return npz_dataset(path, images, np.zeros(len(images), np.int64) if labels is None else labels)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a folder nor a .npz file")
    (found,) = image_files(path)
    files = [file for file in found if file.name != GRID]
    if not files:
        raise ValueError(f"{path} holds no images")
    names = sorted({str(file.parent.relative_to(path)) for file in files})
    labels = [names.index(str(file.parent.relative_to(path))) for file in files]
    return ImageFiles(files, labels, names, size)
