"""A folder of images with one subfolder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.conditions import ClassLabels
from distill.data.base import Noise, register

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
LAYOUT = "lay the images out as FOLDER/CLASS/IMAGE.png, one subfolder per class"


class ImageFolderDataset:
    """Images of one size, decoded at each access.

    The constructor reads the header of every file (not its pixels), so an image of another size is found before
    training and not in the middle of it. Images are grey (C = 1) if all of them are grey, otherwise RGB (C = 3); an
    alpha channel is dropped. Classes are the subfolders in alphabetical order.

    Raises: ValueError, which names the file, if an image is damaged, not 8 bits deep, not square or not of
        the size of the first one; ValueError for a folder without classes or a class without images.
    """

    def __init__(self, folder: Path) -> None:
        from torchvision.datasets import ImageFolder  # imported here because it takes seconds

        try:
            listed = ImageFolder(str(folder))
        except FileNotFoundError as error:
            what = "holds no class subfolders" if not _subfolders(folder) else f"is incomplete: {error}"
            raise ValueError(f"data.path = {folder} {what}; {LAYOUT}") from error
        self.classes = listed.classes
        self._paths = [Path(path) for path, _ in listed.samples]
        self.labels = torch.tensor(listed.targets, dtype=torch.int64)
        first, size, all_grey = self._paths[0], None, True
        for path in self._paths:
            width, height, mode = _header(path)
            if width != height:
                raise ValueError(f"{path} is {width} x {height} (width x height); images must be square")
            if size is not None and width != size:
                raise ValueError(f"{path} is {width} x {height}; {first} is {size} x {size}, and all must be alike")
            size, all_grey = width, all_grey and mode in GREY_MODES
        self._mode = "L" if all_grey else "RGB"
        self.sample_shape: tuple[int, int, int] = (1 if all_grey else 3, int(size or 0), int(size or 0))
        self.condition = ClassLabels(len(self.classes))

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        images = torch.stack([self._pixels(self._paths[i]) for i in indices.tolist()])
        return images.float().div_(127.5).sub_(1), self.labels[indices]

    def _pixels(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert(self._mode)))  # (H, W) or (H, W, 3)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for a broken PNG
            raise ValueError(f"{path} is damaged: {error}") from error
        pixels = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
        if pixels.shape != self.sample_shape:
            _, height, width = pixels.shape
            raise ValueError(f"{path} has changed since it was listed: it is {width} x {height} now")
        return pixels


def _header(path: Path) -> tuple[int, int, str]:
    """Width, height and Pillow mode of an image."""
    try:
        with Image.open(path) as image:
            width, height, mode = image.width, image.height, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no image that can be read: {error}") from error
    if mode not in GREY_MODES + COLOUR_MODES:
        # Pillow would silently clip 16-bit values to 255.
        raise ValueError(f"{path} has pixels of kind {mode}; only images of 8 bits per channel are read")
    return width, height, mode


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())


@register("images")
def load_images(path: Path, split: str) -> ImageFolderDataset:
    """Load `path`/CLASS/IMAGE.{png,jpg,webp,..}, or `path`/{train,test}/CLASS/IMAGE if there are such splits.

    Without `train` and `test` folders, the whole folder serves as both splits. (A `train` folder that holds images
    and no folders is a class of that name.)
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.path = {path} is not a folder")
    splits = {name: path / name for name in ("train", "test") if (path / name).is_dir() and _subfolders(path / name)}
    if not splits:
        return ImageFolderDataset(path)
    if split not in splits:
        raise FileNotFoundError(f"data.path = {path} has a folder {', '.join(splits)} but none named {split}")
    # Labels are positions in the list of classes, so both splits must have the same list.
    classes = [set(_subfolders(folder)) for folder in splits.values()]
    different = sorted(classes[0] ^ classes[-1])
    if different:
        raise ValueError(f"data.path = {path}: classes {', '.join(different)} are in one split only")
    return ImageFolderDataset(splits[split])
