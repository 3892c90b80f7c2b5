"""Colour and tone: too colourful, too pale, clipped, or drifting as a whole.

Colourfulness is Hasler and Suesstrunk's (Human Vision and Electronic Imaging, 2003) on 8-bit values:
sqrt(var rg + var yb) + 0.3 sqrt(mean rg^2 + mean yb^2), rg = R - G, yb = (R + G) / 2 - B, of each image. Contrast is
the standard deviation of the mean over channels, an image's range being 2. A value is clipped if an 8-bit image holds
0 or 255 there.

Limits: all are global; two errors of opposite signs in one image may cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.metrics.images import check_images, grey
from distill.metrics.registry import distance_of, measure_of
from distill.metrics.tables import register_table

LAST = 1 - 1 / 255  # values beyond it are 0 or 255 in 8 bits


@register_table
def tones(images: Tensor) -> Tensor:
    """Contrast, clipped share and colourfulness (nan without three channels), [N, 3]."""
    check_images(images)
    contrast = grey(images).flatten(1).std(1)
    clipped = (images.abs() >= LAST).float().flatten(1).mean(1)
    return torch.stack([contrast, clipped, _colourfulness(images)], dim=1)


def _colourfulness(images: Tensor) -> Tensor:
    if images.shape[1] != 3:
        return torch.full((len(images),), torch.nan, device=images.device)
    red, green, blue = (127.5 * images).flatten(2).unbind(1)
    sides = torch.stack([red - green, (red + green) / 2 - blue])
    return sides.var(-1).sum(0).sqrt() + 0.3 * sides.mean(-1).square().sum(0).sqrt()


@register_table
def mean_colour(images: Tensor) -> Tensor:
    """Mean of each channel, [N, C]."""
    return images.flatten(2).mean(-1)


@measure_of("tones", "colour and tone", "Contrast", unit="image units", explanation="standard deviation of grey values")
def contrast(row: Tensor) -> float:
    return float(row[0])


@measure_of(
    "tones",
    "colour and tone",
    "Clipped share",
    unit="share of values",
    explanation="share of values that are 0 or 255 in 8 bits; more than the data: burnt out or crushed",
)
def clipped_share(row: Tensor) -> float:
    return float(row[1])


@measure_of(
    "tones",
    "colour and tone",
    "Colourfulness",
    unit="8-bit values",
    explanation="spread and strength of colours; guidance and long distillation tend to raise it",
)
def colourfulness(row: Tensor) -> float:
    return float(row[2])


@distance_of(
    "mean_colour",
    "colour and tone",
    "Colour drift from data",
    unit="image units",
    to="data",
    explanation="distance of the mean colours: a tint, or brighter or darker as a whole",
)
def colour_drift(row: Tensor, target: Tensor) -> float:
    return float((row.double() - target.double()).square().mean().sqrt())
