"""Sets of images as measures take them: [N, C, H, W], floats in [-1, 1]; or of videos, [N, C, F, H, W].

What is measured of pictures is measured of the frames of videos: `by_parts` gives the mean over the frames of each, so
that a video counts once, however long it is. What compares whole sets takes one frame of each, `stills`: frames of one
video are alike, and as many samples they would pass for variety that is not there, or for neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from distill.render import as_videos, frame_shape, frames

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


def check_samples(samples: Tensor, min_samples: int = 1) -> None:
    """`check_images`, of videos [N, C, F, H, W] as well."""
    check_images(samples.flatten(1, 2) if samples.ndim == 5 else samples, min_samples)


def grey(images: Tensor) -> Tensor:
    """Mean over channels, [N, H, W]."""
    return images.mean(1)


def by_parts(function: Callable[..., Tensor], *samples: Tensor, at_once: int = AT_ONCE) -> Tensor:
    """A function of pictures [n, C, H, W] over all samples, [N, ..], some at a time; of videos the mean over frames.

    Frames where the function has no value, nan, are left out. at_once: values that it is given together.
    """
    size = max(1, at_once // samples[0][0].numel())
    pictures = max(1, at_once // math.prod(frame_shape(samples[0].shape[1:])))
    found = []
    for parts in zip(*(side.split(size) for side in samples), strict=True):
        together = zip(*(frames(part).split(pictures) for part in parts), strict=True)
        values = torch.cat([function(*(side.float() for side in some)) for some in together])
        found.append(values.unflatten(0, (len(parts[0]), -1)).nanmean(1))
    return torch.cat(found)


def stills(samples: Tensor) -> Tensor:
    """One frame of each video, by lot, [N, C, H, W]; pictures as they are."""
    videos = as_videos(samples)
    lots = torch.randint(videos.shape[2], (len(videos),), generator=torch.Generator().manual_seed(0))
    return videos[torch.arange(len(videos)), :, lots] if videos.shape[2] > 1 else videos[:, :, 0]
