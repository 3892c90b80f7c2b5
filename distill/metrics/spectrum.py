"""Power spectra of images: how much fine detail there is, and how much two sets differ.

Power is |FFT|^2 / (H W) of each channel after its mean is removed, without a window; by Parseval it sums to
the sum of squares about the mean. Frequencies are in cycles per pixel; 0.5 is the Nyquist frequency along an
axis, and the corners of the spectrum reach sqrt(0.5).

Shapes: N images, C channels, H x W pixels, K rings, M frequencies along one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

DETAIL_BAND = (0.25, 0.5)  # the upper half of the frequencies along an axis, cycles per pixel
POWER_FLOOR = 1e-10  # keeps the logarithm of an empty ring finite; far below 8-bit rounding (5e-6)
_CHUNK = 512  # images per FFT


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


def power_spectrum(images: Tensor) -> Tensor:
    """Power of each image averaged over its channels, [N, H, W], float32, with frequency zero at index [0, 0].

    Raises: ValueError as `check_images`.
    """
    check_images(images)
    height, width = images.shape[-2:]
    chunks = []
    for chunk in images.float().split(_CHUNK):
        centred = chunk - chunk.mean((-2, -1), keepdim=True)
        chunks.append(torch.fft.fft2(centred).abs().square().mean(1) / (height * width))
    return torch.cat(chunks)


def radial_frequency(height: int, width: int) -> Tensor:
    """Distance of each entry of a spectrum from frequency zero, cycles per pixel, [H, W]."""
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    return (rows[:, None].square() + columns[None].square()).sqrt()


def ring_power(images: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuthal mean of the power of each image.

    Ring k holds the frequencies whose radius times s = min(H, W) rounds to k. Frequency zero (the removed
    mean) and the corners beyond the last ring belong to no ring.

    Returns: ring frequencies k / s for k = 1 .. s // 2, [K], and power [N, K].
    """
    power = power_spectrum(images)
    size = min(power.shape[-2:])
    ring = (radial_frequency(*power.shape[-2:]) * size).round().long().to(power.device)
    rings = torch.arange(1, size // 2 + 1, device=power.device)
    member = (ring.flatten()[:, None] == rings).to(power.dtype)  # [H W, K]
    return (rings / size).float(), power.flatten(1) @ (member / member.sum(0))


def radial_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency in cycles per pixel [K] and mean power of all images and channels [K]; see `ring_power`."""
    frequency, power = ring_power(images)
    return frequency, power.mean(0)


def band_power(images: Tensor, cutoff: float = 0.25) -> Tensor:
    """Power at radial frequency >= cutoff, and power at all frequencies except zero, per pixel, [N, 2].

    Both include the corners of the spectrum; the second is the variance of the pixels.

    Raises: ValueError if cutoff is not in (0, 0.5], or as `check_images`.
    """
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff is {cutoff}; it must lie in (0, 0.5] cycles per pixel")
    power = power_spectrum(images)
    # 1e-6: a frequency equal to the cutoff belongs to the band, however it is rounded
    high = (radial_frequency(*power.shape[-2:]) >= cutoff - 1e-6).to(power)
    total = power.flatten(1).mean(1)
    return torch.stack([(power * high).flatten(1).mean(1), total], dim=1)


def high_frequency_ratio(images: Tensor, cutoff: float = 0.25) -> float:
    """Share of the power (mean removed) at radial frequency >= cutoff, in [0, 1]; a ratio of means."""
    return ratio_from_band_power(band_power(images, cutoff).double().mean(0))


def ratio_from_band_power(mean_band_power: Tensor) -> float:
    """`high_frequency_ratio` from the mean [2] of `band_power`; 0 for flat images."""
    high, total = mean_band_power.tolist()
    return high / total if total > 0 else 0.0


def spectral_difference(
    frequency: Tensor, power_a: Tensor, power_b: Tensor, band: tuple[float, float] = DETAIL_BAND
) -> Tensor:
    """Signed 10 log10(power_a / power_b) in decibels at the rings inside `band` (ends included), [K'].

    Positive: a has more power. Powers below 1e-10 count as 1e-10.

    Raises: ValueError if shapes differ or no ring lies in the band.
    """
    if not frequency.shape == power_a.shape == power_b.shape:
        raise ValueError(
            f"spectra do not belong together: frequency {list(frequency.shape)}, "
            f"powers {list(power_a.shape)} and {list(power_b.shape)}"
        )
    inside = (frequency >= band[0] - 1e-6) & (frequency <= band[1] + 1e-6)
    if not inside.any():
        raise ValueError(f"band {band} holds none of the {len(frequency)} ring frequencies")
    decibels_a, decibels_b = (
        10 * torch.log10(power[inside].double().clamp_min(POWER_FLOOR)) for power in (power_a, power_b)
    )
    return decibels_a - decibels_b


def spectral_distance_from_power(
    frequency: Tensor, power_a: Tensor, power_b: Tensor, band: tuple[float, float] = DETAIL_BAND
) -> float:
    """Root mean square of `spectral_difference`, in decibels: too little and too much power count the same."""
    return spectral_difference(frequency, power_a, power_b, band).square().mean().sqrt().item()


def spectral_distance(a: Tensor, b: Tensor, band: tuple[float, float] = DETAIL_BAND) -> float:
    """RMS difference in decibels between the radial spectra of images a and b in `band`; symmetric.

    Raises: ValueError if the images of a and b differ in size, or as `spectral_difference`.
    """
    if a.shape[-2:] != b.shape[-2:]:
        raise ValueError(f"images are {list(a.shape[-2:])} in a and {list(b.shape[-2:])} in b")
    frequency, power_a = radial_spectrum(a)
    _, power_b = radial_spectrum(b)
    return spectral_distance_from_power(frequency, power_a, power_b, band)


def axis_power(images: Tensor) -> Tensor:
    """Power of each image along each frequency axis, where the other frequency is 0, [N, 2, M].

    Index m is m cycles per side; M = side // 2 + 1.

    Raises: ValueError if the images are not square.
    """
    check_images(images)
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"images are {height} x {width}; the patch grid is measured on square images only")
    power = power_spectrum(images)
    half = height // 2 + 1
    return torch.stack([power[:, :half, 0], power[:, 0, :half]], dim=1)


def patch_peak(images: Tensor, patch_size: int) -> float:
    """Strength of a patch grid artefact: power at the patch frequencies k / patch_size relative to their neighbours.

    The geometric mean over both axes and k = 1 .. patch_size // 2 of P(k n) / sqrt(P(k n - 1) P(k n + 1)),
    where P(m) is the mean power at m cycles per side along the axis, with n patches per side. 1.0 means no grid; a
    power-law spectrum also gives 1.0, up to its curvature. Compare with the value of the data: real images are not
    exactly 1.

    Raises: ValueError if patch_size is below 2 or does not divide the side into at least 2 patches.
    """
    return peak_from_axis_power(axis_power(images).double().mean(0), images.shape[-1], patch_size)


def has_patch_grid(side: int, patch_size: int) -> bool:
    """Whether `patch_size` has grid frequencies: patches of at least 2 pixels, and at least 2 patches per side."""
    return patch_size >= 2 and side % patch_size == 0 and side // patch_size >= 2


def peak_from_axis_power(mean_axis_power: Tensor, side: int, patch_size: int) -> float:
    """`patch_peak` from the mean [2, M] of `axis_power` of images with `side` pixels per side."""
    if not has_patch_grid(side, patch_size):
        raise ValueError(f"patch_size is {patch_size}; it must be at least 2 and divide {side} into 2 or more patches")
    patches = side // patch_size
    log_power = mean_axis_power.double().clamp_min(POWER_FLOOR).log()
    peaks = torch.arange(1, patch_size // 2 + 1) * patches
    # The spectrum is symmetric about the Nyquist frequency.
    above = torch.where(peaks == side / 2, peaks - 1, peaks + 1)
    ratios = log_power[:, peaks] - (log_power[:, peaks - 1] + log_power[:, above]) / 2
    return ratios.mean().exp().item()
