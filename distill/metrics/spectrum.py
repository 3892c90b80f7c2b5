"""Power spectra: how much fine detail there is, of which size and direction, and how far two sets differ.

Power is |DCT-II|^2 of each channel, orthonormal: by Parseval it adds up to the sum of squares. The DCT is the spectrum
of the image continued by its mirror image, so opposite borders do not meet and their jump is not taken for detail (a
Fourier transform of the frame reads a blur of sigma 1 as 74 % less high frequencies where 98 % are gone). Coefficient
(u, v) has the frequency (u / 2H, v / 2W) cycles per pixel; 0.5 is Nyquist's along an axis, and the corners, where a
checkerboard lies, reach sqrt(0.5). Coefficient (0, 0), the mean, belongs to nothing.

Limit: power is not detail. Grain has power, and phases do not count, so a spectrum takes blur with grain for real;
`edges` and `grain` tell them apart.

Shapes: N images, C channels, H x W pixels, K rings.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from distill.metrics.images import check_images
from distill.metrics.registry import distance_of, measure_of
from distill.metrics.tables import register_table

DETAIL = 0.25  # cycles per pixel, the upper half of the frequencies along an axis
POWER_FLOOR = 1e-10  # keeps the logarithm of an empty ring finite; far below 8-bit rounding (5e-6)
EDGES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # of the bands: octaves, and the corners
ROUNDING = 1e-6  # a frequency equal to an edge belongs above it, however it is rounded


@lru_cache(maxsize=8)
def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II, [size, size] in float64: row u is c_u cos(pi u (2 x + 1) / 2 size)."""
    x = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi * x[:, None] * (2 * x + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=8)
def frequencies(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal frequency of each coefficient, cycles per pixel, [H, W] both."""
    rows, columns = torch.arange(height) / (2 * height), torch.arange(width) / (2 * width)
    return rows[:, None].expand(height, width), columns.expand(height, width)


def radial_frequency(height: int, width: int) -> Tensor:
    rows, columns = frequencies(height, width)
    return (rows.square() + columns.square()).sqrt()


def power_spectrum(images: Tensor) -> Tensor:
    """Power of each image averaged over its channels, [N, H, W], float32; that of the mean, at [0, 0], is 0.

    Raises: ValueError as `check_images`.
    """
    check_images(images)
    height, width = images.shape[-2:]
    down, across = (dct_matrix(size).to(images.device, torch.float32) for size in (height, width))
    centred = images.float() - images.float().mean((-2, -1), keepdim=True)
    power = (down @ centred @ across.T).square().mean(1)
    power[:, 0, 0] = 0
    return power


def ring_frequencies(height: int, width: int) -> Tensor:
    """k / s for k = 1 .. K, the ring of the last corner, where s = min(H, W), cycles per pixel, [K]."""
    return torch.arange(1, int(_ring_of(height, width).max()) + 1) / min(height, width)


def _ring_of(height: int, width: int) -> Tensor:
    """The number of the ring of each coefficient, [H, W]; 0 belongs to none."""
    return (radial_frequency(height, width) * min(height, width)).round().long()


@register_table
def rings(images: Tensor) -> Tensor:
    """Mean power in each ring, [N, K], then H and W. Ring k holds radii that times s = min(H, W) round to k."""
    height, width = images.shape[-2:]
    ring = _ring_of(height, width).flatten()
    member = torch.nn.functional.one_hot(ring).float()[:, 1:]
    power = power_spectrum(images).flatten(1) @ (member / member.sum(0)).to(images.device)
    sides = torch.tensor([float(height), float(width)], device=images.device).expand(len(images), 2)
    return torch.cat([power, sides], dim=1)


def spectrum_of_row(row: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency and power, [K] both, of a mean row of `rings`."""
    height, width = (round(side) for side in row[-2:].tolist())
    return ring_frequencies(height, width), row[:-2]


@register_table
def bands(images: Tensor) -> Tensor:
    """Power in each band between `EDGES`, per pixel, [N, 5]; together the variance of the pixels."""
    power, radius = power_spectrum(images), radial_frequency(*images.shape[-2:])
    inside = [(radius >= low - ROUNDING) & (radius < high - ROUNDING) for low, high in pairwise(EDGES)]
    return torch.stack([(power * part.to(power)).flatten(1).mean(1) for part in inside], dim=1)


def high_frequency_share(images: Tensor) -> float:
    """Share of the power, the mean removed, at radial frequencies of a quarter cycle per pixel and more."""
    return high_frequency_ratio(bands(images).double().mean(0))


def _share(row: Tensor, first: int, last: int | None = None) -> float:
    total = float(row.sum())
    return float(row[first:last].sum()) / total if total > 0 else math.nan


@measure_of(
    "bands",
    "spectrum",
    "High-frequency share",
    unit="share of power",
    explanation="share of the power above half the Nyquist frequency; less than the data: lost, more: grain or ringing",
)
def high_frequency_ratio(row: Tensor) -> float:
    return _share(row, 3)


@measure_of(
    "bands",
    "spectrum",
    "Middle share",
    unit="share of power",
    explanation="share of the power between an eighth and a quarter cycle per pixel: shapes of four to eight pixels",
)
def middle_frequency_ratio(row: Tensor) -> float:
    return _share(row, 2, 3)


@measure_of(
    "bands",
    "spectrum",
    "Corner share",
    unit="share of power",
    explanation="share of the power beyond Nyquist's frequency of the axes: diagonal detail of single pixels, where a "
    "checkerboard lies",
)
def corner_ratio(row: Tensor) -> float:
    return _share(row, 4)


@measure_of(
    "rings",
    "spectrum",
    "Spectral slope",
    unit="exponent",
    explanation="exponent of the power over frequency, from a quarter of Nyquist's to the corners; flatter than the "
    "data: grain, steeper: blur",
)
def spectral_slope(row: Tensor) -> float:
    frequency, power = spectrum_of_row(row)
    chosen = frequency >= DETAIL / 2
    x, y = frequency[chosen].double().log(), power[chosen].double().clamp_min(POWER_FLOOR).log()
    centred = x - x.mean()
    return float((centred * y).sum() / centred.square().sum())


def spectral_difference(row: Tensor, target: Tensor) -> Tensor:
    """Signed 10 log10 of the ratio of two mean rows of `rings` at `DETAIL` and above, in dB, [K'].

    Powers below 1e-10 count as 1e-10. Raises: ValueError where images differ in size.
    """
    if row.shape != target.shape or not torch.equal(row[-2:].round(), target[-2:].round()):
        raise ValueError(f"spectra of images {row[-2:].tolist()} and {target[-2:].tolist()} cannot be compared")
    frequency, _ = spectrum_of_row(row)
    inside = frequency >= DETAIL - ROUNDING
    decibels = [10 * side[:-2][inside].double().clamp_min(POWER_FLOOR).log10() for side in (row, target)]
    return decibels[0] - decibels[1]


@distance_of(
    "rings",
    "spectrum",
    "Spectral distance to teacher",
    unit="dB",
    to="teacher",
    explanation="the same difference from the teacher's spectrum",
)
@distance_of(
    "rings",
    "spectrum",
    "Spectral distance to data",
    unit="dB",
    to="data",
    explanation="RMS difference of the spectra above half the Nyquist frequency, corners included; too little, too "
    "much alike",
)
def spectral_distance(row: Tensor, target: Tensor) -> float:
    return float(spectral_difference(row, target).square().mean().sqrt())


SECTORS = 3  # along rows, along columns, diagonal


@register_table
def sectors(images: Tensor) -> Tensor:
    """Mean power of the detail whose frequency is horizontal, vertical (within 22.5 degrees) or diagonal, [N, 3]."""
    rows, columns = frequencies(*images.shape[-2:])
    angle = torch.atan2(rows, columns)  # 0: varies along a row
    detail = radial_frequency(*images.shape[-2:]) >= DETAIL - ROUNDING
    detail &= radial_frequency(*images.shape[-2:]) <= 0.5 + ROUNDING  # beyond it there are diagonals alone
    power, eighth = power_spectrum(images), math.pi / 8
    chosen = [angle < eighth, angle > 3 * eighth, (angle >= eighth) & (angle <= 3 * eighth)]
    means = [(power * (part & detail).to(power)).flatten(1).sum(1) / (part & detail).sum() for part in chosen]
    return torch.stack(means, dim=1)


@measure_of(
    "sectors",
    "spectrum",
    "Anisotropy",
    unit="dB",
    explanation="fine power of the strongest of three directions (horizontal, vertical, diagonal) against the weakest",
)
def anisotropy(row: Tensor) -> float:
    decibels = 10 * row.double().clamp_min(POWER_FLOOR).log10()
    return float(decibels.max() - decibels.min())
