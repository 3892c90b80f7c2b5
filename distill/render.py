"""Samples as pictures. A sample is a picture (C, H, W) or a video (C, F, H, W); they are told apart here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

GRID_CELL = 84  # side of a square as large as an image of a grid is enlarged to, at most, in pixels
MARGIN = 8  # width of a frame over that of the margin between videos
STRIP = 6  # frames of a video that a picture of it shows, at most
FRAMES_PER_SECOND = 16  # as the pipeline of Wan writes them


def as_videos(samples: Tensor) -> Tensor:
    """(N, C, F, H, W): a picture is a video of one frame."""
    return samples if samples.ndim == 5 else samples.unsqueeze(2)


def frames(samples: Tensor) -> Tensor:
    """(N F, C, H, W): the frames of one video after those of another; pictures as they are."""
    return as_videos(samples).transpose(1, 2).flatten(0, 1)


def frame_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a frame, for the shape of a picture or of a video."""
    channels, *_, height, width = shape
    return channels, height, width


def strip(samples: Tensor) -> Tensor:
    """(N, C, H, k W): k <= `STRIP` evenly spaced frames of each video, from left to right; pictures as they are."""
    videos = as_videos(samples)
    number = videos.shape[2]
    chosen = torch.linspace(0, number - 1, min(number, STRIP)).round().long()
    return videos[:, :, chosen].transpose(2, 3).flatten(3)


def class_grid(images: Tensor, num_rows: int) -> Tensor:
    """(N, C, H, W), class-major with `num_rows` samples a class, to one picture (C, rows H, classes W)."""
    _, channels, height, width = images.shape
    columns = images.view(-1, num_rows, channels, height, width)
    return columns.permute(2, 1, 3, 0, 4).reshape(channels, num_rows * height, -1)


def clamp_images(images: Tensor) -> Tensor:
    """Images clamped to [-1, 1]: what a file or a screen holds, and so what is measured.

    A sampler's raw output leaves the range, most of all where the data is saturated, and so does a decoder's.
    """
    return images.clamp(-1, 1)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to 0..255, rounded and clamped; shape kept."""
    return images.detach().float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8).cpu()


def grid_image(images: Tensor, num_rows: int) -> Image.Image:
    """`class_grid` as a picture, small images enlarged, videos as strips with a margin."""
    shown = strip(images)
    if images.ndim == 5:
        shown = pad(shown, (0, -(-images.shape[-1] // MARGIN)), value=1.0)  # else who would see where a video ends?
    return to_image(class_grid(shown, num_rows), scale=enlargement(shown.shape[-2:], GRID_CELL))


def enlargement(sides: tuple[int, ...], side: int) -> int:
    """By how much to enlarge an image of these sides, so that it is no larger than a square of `side`; 1 at least."""
    return max(1, side // math.isqrt(math.prod(sides)))


def save_grid(images: Tensor, num_rows: int, path: Path) -> None:
    """Write `grid_image` as PNG, whole or not at all."""
    _save(grid_image(images, num_rows), path)


def save_sample(sample: Tensor, folder: Path, name: str) -> Path:
    """Write one sample, C 1 or 3, in [-1, 1], whole or not at all and without loss: a picture as FOLDER/NAME.png, a
    video as FOLDER/NAME.webp, which moves. Returns: the file.
    """
    first, *others = map(to_image, frames(sample[None]))
    if sample.ndim == 3:
        path, options = folder / f"{name}.png", {}
    else:
        path = folder / f"{name}.webp"
        moving = {"save_all": True, "append_images": others, "duration": round(1000 / FRAMES_PER_SECOND), "loop": 0}
        options = {"format": "WEBP", "lossless": True, **moving}
    _save(first, path, **options)
    return path


def to_image(image: Tensor, scale: int = 1) -> Image.Image:
    """One picture (C, H, W), C 1 or 3, in [-1, 1], pixels as blocks of `scale`."""
    if len(image) not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels; this has {len(image)}")
    pixels = np.ascontiguousarray(to_uint8(image).permute(1, 2, 0).numpy())
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _save(picture: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, **{"format": "PNG", **options})
    partial.replace(path)
