"""Samples as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

GRID_CELL = 84  # pixels that an image of a grid is enlarged to, at most


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
    """`class_grid` as a picture, small images enlarged."""
    return to_image(class_grid(images, num_rows), scale=max(1, GRID_CELL // images.shape[-1]))


def save_grid(images: Tensor, num_rows: int, path: Path) -> None:
    """Write `grid_image` as PNG, whole or not at all."""
    _save(grid_image(images, num_rows), path)


def save_image(image: Tensor, path: Path) -> None:
    """Write one picture (C, H, W), C 1 or 3, in [-1, 1] as PNG, whole or not at all."""
    _save(to_image(image), path)


def to_image(image: Tensor, scale: int = 1) -> Image.Image:
    """One picture (C, H, W), C 1 or 3, in [-1, 1], pixels as blocks of `scale`."""
    if len(image) not in (1, 3):
        raise ValueError(f"an image has 1 or 3 channels; this has {len(image)}")
    pixels = np.ascontiguousarray(to_uint8(image).permute(1, 2, 0).numpy())
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="PNG")
    partial.replace(path)
