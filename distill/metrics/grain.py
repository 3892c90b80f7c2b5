"""Texture against grain: whether fine coefficients are few and large, as edges make them, or many and alike, as grain.

Sparsity, of the wavelet details of each channel at level 1 (two pixels) and 2 (four): (mean |c|)^2 / mean c^2, mean
over images. Gaussian noise has 2 / pi = 0.637, natural images far less, since few coefficients hold most of the energy;
a median filter, which takes texture and leaves edges, lowers it. Contrast does not move it.

Grain is the standard deviation of the noise in the flattest parts of an image: of the diagonal details of level 1,
which hold little of edges, in the third of the image where the approximation changes least, sqrt(pi / 2) mean |c|.
After Donoho's robust estimate (Biometrika 81, 1994), which takes a median: that of an image that is mostly one clipped
value is 0, whatever noise is on the rest. Its share of the high-frequency power supposes white grain, which has its
variance times the share of frequencies above a quarter cycle per pixel.

Limits: fine texture that fills the flattest third counts as grain; grain of two pixels and more is found less; clipping
hides grain.

Wavelets are PyWavelets', Daubechies' with two vanishing moments, continued by reflection.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.metrics.images import check_images
from distill.metrics.registry import measure_of, quotient
from distill.metrics.spectrum import DETAIL, ROUNDING, bands, radial_frequency
from distill.metrics.tables import register_table

WAVELET = "db2"
FLAT_SHARE = 1 / 3
EMPTY = 1e-8  # power of details below which an image has none: far below 8-bit rounding


@register_table
def sparsity(images: Tensor) -> Tensor:
    """Sparsity and whether the image has details, at level 1 and at level 2: [N, 4]."""
    _, first, second = _details(images)
    return torch.stack([number for details in (first, second) for number in _sparsity(details)], dim=1)


def _sparsity(details: Tensor) -> tuple[Tensor, Tensor]:
    """Of details [N, C, 3, h, w]: the ratio (0 where there are none), and 1 where there are some, [N] both."""
    values = details.flatten(1)
    power = values.square().mean(1)
    known = power > EMPTY
    return torch.where(known, values.abs().mean(1).square() / power.clamp_min(EMPTY), 0.0), known.float()


@register_table
def grain_power(images: Tensor) -> Tensor:
    """Grain, its square, the part of that in the detail band, and the power there: [N, 4]."""
    approximation, details, _ = _details(images)
    diagonal = details[:, :, 2].abs()
    flat = _flattest(approximation)
    level = math.sqrt(math.pi / 2) * (diagonal * flat).flatten(2).sum(-1) / flat.flatten(2).sum(-1)
    variance = level.square().mean(1)
    in_detail = (radial_frequency(*images.shape[-2:]) >= DETAIL - ROUNDING).float().mean()
    return torch.stack([variance.sqrt(), variance, variance * in_detail, bands(images)[:, 3:].sum(1)], dim=1)


def _details(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Approximation [N, C, h, w] of level 1 and details [N, C, 3, h, w] of levels 1 and 2; the third is diagonal."""
    import pywt

    check_images(images)
    approximation, first = pywt.dwt2(images.cpu().numpy(), WAVELET, mode="symmetric")
    _, second = pywt.dwt2(approximation, WAVELET, mode="symmetric")
    fine, coarse = (torch.stack([torch.from_numpy(part) for part in level], dim=2) for level in (first, second))
    return torch.from_numpy(approximation), fine, coarse


def _flattest(approximation: Tensor) -> Tensor:
    """1 in the third of each image where the approximation, smoothed, changes least, [N, 1, h, w]."""
    mean = torch.nn.functional.avg_pool2d(approximation.mean(1, keepdim=True), 3, stride=1, padding=1,
                                          count_include_pad=False)  # fmt: skip
    padded = torch.nn.functional.pad(mean, (1, 1, 1, 1), mode="replicate")
    across, down = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2], padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    slope = (across.square() + down.square()).flatten(1)
    limit = slope.kthvalue(max(1, int(slope.shape[1] * FLAT_SHARE)), dim=1, keepdim=True).values
    return (slope <= limit).float().view_as(mean)


@measure_of(
    "grain_power",
    "texture and grain",
    "Grain x 1000",
    unit="image units",
    explanation="standard deviation of the noise in the flattest third of each image, an image's range being 2",
)
def grain(row: Tensor) -> float:
    return 1000 * float(row[0])


@measure_of(
    "grain_power",
    "texture and grain",
    "Grain in the fine power",
    unit="share of fine power",
    explanation="share of the power above half the Nyquist frequency that white grain of that level has; the rest is "
    "edges and texture",
)
def grain_share(row: Tensor) -> float:
    return quotient(row[2:])


@measure_of(
    "sparsity",
    "texture and grain",
    "Sparsity, 2 pixels",
    unit="ratio",
    explanation="(mean |c|)^2 / mean c^2 of the finest wavelet details: 0.637 for grain, less where few edges hold the "
    "energy; more than the data: grain, less: texture is lost",
)
def sparsity_fine(row: Tensor) -> float:
    return quotient(row[:2])


@measure_of(
    "sparsity",
    "texture and grain",
    "Sparsity, 4 pixels",
    unit="ratio",
    explanation="the same of the details twice as large",
)
def sparsity_coarse(row: Tensor) -> float:
    return quotient(row[2:])
