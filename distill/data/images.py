"""A folder of images with one subfolder per class."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from distill.conditions import ClassLabels
from distill.data.base import Noise, register
from distill.errors import reading
from distill.progress import logger

GREY_MODES = ("1", "L", "LA")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SPLITS = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
MOST_PIXELS, MOST_LONGER = 200_000_000, 50  # beyond, an image cut to a square takes all memory, or shows nothing
LAYOUT = "lay the images out as FOLDER/CLASS/IMAGE.png, one subfolder per class"


class ImageFiles:
    """Images in files, decoded at each access, turned as their EXIF orientation says.

    With `size` they are resized and cropped to size x size (`resize_and_crop`), otherwise they must be of one size.

    The constructor reads the header of every file (not its pixels), so an image of another size is found before
    training and not in the middle of it. Images are grey (C = 1) if all of them are grey, otherwise RGB (C = 3); an
    alpha channel is dropped.

    Raises: ValueError, which names the file, if an image is damaged, not 8 bits deep, or not of the size of the first.
    """

    def __init__(
        self, paths: Sequence[Path], labels: Sequence[int], classes: Sequence[str], size: int | None = None
    ) -> None:
        self._paths = list(paths)
        self._size = size
        self.labels = torch.tensor(labels, dtype=torch.int64)
        shape, all_grey, num_smaller = (0, 0), True, 0
        for path in self._paths:
            width, height, mode = _header(path)
            if size is not None:
                num_smaller += min(width, height) < size
                width = height = size
            if path != self._paths[0] and (width, height) != shape:
                raise ValueError(
                    f"{path} is {width} x {height}; {self._paths[0]} is {shape[0]} x {shape[1]}, and all must "
                    "be alike: give data.size, to which they are resized and cropped"
                )
            shape, all_grey = (width, height), all_grey and mode in GREY_MODES
        if num_smaller:
            logger.warning(f"{num_smaller} images are smaller than data.size = {size} and are enlarged, which blurs")
        self._mode = "L" if all_grey else "RGB"
        self.sample_shape: tuple[int, int, int] = (1 if all_grey else 3, shape[1], shape[0])
        self.condition = ClassLabels(len(classes), class_names=tuple(classes))

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        images = torch.stack([self._pixels(self._paths[i]) for i in indices.tolist()])
        return images.float().div_(127.5).sub_(1), self.labels[indices]

    def _pixels(self, path: Path) -> Tensor:
        with reading(path), Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert(self._mode)
            if self._size is not None:
                upright = resize_and_crop(upright, self._size)
            pixels = torch.from_numpy(np.array(upright))  # (H, W) or (H, W, 3)
        pixels = pixels.view(*pixels.shape[:2], -1).permute(2, 0, 1)
        if pixels.shape != self.sample_shape:
            _, height, width = pixels.shape
            raise ValueError(f"{path} has changed since it was listed: it is {width} x {height} now")
        return pixels


class ImageFolderDataset(ImageFiles):
    """Square images with one subfolder per class; classes are the subfolders in order, 2 before 10.

    Raises: as `ImageFiles`; ValueError for images that are not square, for a folder without classes, and for a class
        without images.
    """

    def __init__(self, folder: Path, size: int | None = None) -> None:
        classes = _subfolders(folder)
        if not classes:
            raise ValueError(f"data.path = {folder} holds no class subfolders; {LAYOUT}")
        for name in classes:
            _check_folder(folder / name)
        files = image_files(*(folder / name for name in classes))
        empty = [name for name, found in zip(classes, files, strict=True) if not found]
        if empty:
            raise ValueError(f"data.path = {folder} is incomplete: no images in {', '.join(empty[:3])}; {LAYOUT}")
        labels = [label for label, found in enumerate(files) for _ in found]
        super().__init__([path for found in files for path in found], labels, classes, size)
        _, height, width = self.sample_shape
        if height != width:
            raise ValueError(
                f"{self._paths[0]} is {width} x {height} (width x height); images must be square: give data.size"
            )


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image as size x size pixels, antialiased, as ADM prepares ImageNet (`center_crop_arr`).

    Halved by averaging while twice as large, then resized with a bicubic filter so that the shorter side is `size`.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    resized = (round(image.width * scale), round(image.height * scale))
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def image_files(*roots: Path) -> list[list[Path]]:
    """The images below each folder, sorted; other files are left out, counted over all, and reported once.

    Hidden files and folders and `__MACOSX` are no part of the data. Links to folders are counted and not followed.

    Raises: ValueError for something named like an image that is no file, and for a link to a folder that it lies in.
    """
    others: Counter[str] = Counter()
    found = [[path for path in _files(root, others) if _is_image(path, others)] for root in roots]
    if others:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(others.items()))
        logger.warning(f"{roots[0].parent}: files that are not read as images were left out: {counts}")
    return found


def _files(root: Path, others: Counter[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in folders:
            _check_folder(Path(parent, name))
            if Path(parent, name).is_symlink():
                others["links to folders"] += 1
        for name in sorted(names):
            if _is_hidden(name):
                others["hidden"] += 1
            else:
                yield Path(parent, name)


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder that is named like an image, or a link that leads to where it lies."""
    if folder.suffix.lower() in EXTENSIONS:
        raise ValueError(f"{folder} is a folder and named like an image; rename it")
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder} is a link to a folder that it lies in; remove it")


def _is_image(path: Path, others: Counter[str]) -> bool:
    if path.suffix.lower() not in EXTENSIONS:
        others[path.suffix or "without an extension"] += 1
        return False
    if not path.is_file():
        raise ValueError(f"{path} is no file; remove it, or rename it to something that is no image")
    return True


def _header(path: Path) -> tuple[int, int, str]:
    """Width, height and Pillow mode of an image."""
    with reading(path, "is no image that can be read"), Image.open(path) as image:
        width, height, mode = image.width, image.height, image.mode
        if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
            raise ValueError("it moves, and pictures are read")
        # Of a PNG this would read all pixels.
        if image.format != "PNG" and image.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # lies on its side
            width, height = height, width
        if width * height > MOST_PIXELS or max(width, height) > MOST_LONGER * min(width, height):
            raise ValueError(
                f"it is {width} x {height}; at most {MOST_PIXELS:,} pixels, and {MOST_LONGER} times as long as wide"
            )
    if mode not in GREY_MODES + COLOUR_MODES:
        # Pillow would silently clip 16-bit values to 255.
        raise ValueError(f"{path} has pixels of kind {mode}; only images of 8 bits per channel are read")
    return width, height, mode


def _subfolders(folder: Path) -> list[str]:
    names = (entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    return sorted(names, key=_as_people_count)


def _as_people_count(name: str) -> list[tuple[int, str]]:
    """A key that puts "2" before "10", and equal numbers of digits as the alphabet does."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


@register("images")
def load_images(path: Path, split: str, size: int | None = None) -> ImageFolderDataset:
    """Load `path`/CLASS/IMAGE.{png,jpg,webp,..}, or `path`/SPLIT/CLASS/IMAGE if there are such splits (`SPLITS`).

    Without split folders, the whole folder serves as both splits. (A `train` folder that holds images and no folders is
    a class of that name.)
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.path = {path} is not a folder")
    splits = {name: found for name, names in SPLITS.items() if (found := _split_folder(path, names))}
    if not splits:
        return ImageFolderDataset(path, size)
    if split not in splits:
        raise FileNotFoundError(
            f"data.path = {path} has a folder {', '.join(folder.name for folder in splits.values())} but none of "
            f"{', '.join(SPLITS[split])}"
        )
    # Labels are positions in the list of classes, so both splits must have the same list.
    classes = [set(_subfolders(folder)) for folder in splits.values()]
    different = sorted(classes[0] ^ classes[-1])
    if different:
        raise ValueError(f"data.path = {path}: classes {', '.join(different)} are in one split only")
    return ImageFolderDataset(splits[split], size)


def _split_folder(path: Path, names: Sequence[str]) -> Path | None:
    """The first folder of these names that holds folders."""
    return next((path / name for name in names if (path / name).is_dir() and _subfolders(path / name)), None)
