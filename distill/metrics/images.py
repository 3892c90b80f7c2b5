"""Sets of images as measures take them: [N, C, H, W], floats in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AT_ONCE = 2**24  # values of images that a measure works on together


def check_images(images: Tensor, min_images: int = 1) -> None:
    """Raises: ValueError if images are not finite floats [N >= min_images, C, H >= 4, W >= 4]."""
    if images.ndim != 4 or min(images.shape[2:]) < 4:
        raise ValueError(f"images have shape {list(images.shape)}; they must be [N, C, H >= 4, W >= 4]")
    if len(images) < min_images:
        raise ValueError(f"{len(images)} image(s) given; at least {min_images} are needed")
    if not torch.is_floating_point(images):
        raise ValueError(f"images are {images.dtype}; they must be floating point in [-1, 1]")
    if not torch.isfinite(images).all():
        raise ValueError("images hold nan or infinite values")


def grey(images: Tensor) -> Tensor:
    """Mean over channels, [N, H, W]."""
    return images.mean(1)


def by_parts(rows: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`rows` of all images, [N, k], computed of some at a time."""
    size = max(1, AT_ONCE // images[0].numel())
    return torch.cat([rows(part.float()) for part in images.split(size)])
