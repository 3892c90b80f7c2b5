"""Steepness of images: Sobel gradients, the share of edge pixels, and the distance of two sets in steepness.

Gradients are taken of the mean over channels, in image units (range 2) per pixel, with Sobel kernels divided by 8:
a ramp of slope s has gradient s, and a step of height h has gradient h / 2 on the two pixels beside it. Only
pixels with all eight neighbours count: [N, H - 2, W - 2].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from distill.metrics.spectrum import check_images

EDGE_THRESHOLD = 0.25  # image units per pixel; a clean step must exceed 0.5, a quarter of the range
MAX_MAGNITUDE = 2**0.5  # each component of the gradient of an image in [-1, 1] is at most 1
NUM_BINS = 512
BIN_WIDTH = MAX_MAGNITUDE / NUM_BINS
_CHUNK = 512  # images per convolution


def gradient_magnitude(images: Tensor) -> Tensor:
    """Magnitude of the Sobel gradient, image units per pixel, [N, H - 2, W - 2].

    Raises: ValueError as `check_images`.
    """
    check_images(images)
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    along_x = smooth[:, None] * slope / 8
    kernels = torch.stack([along_x, along_x.T])[:, None].to(images.device)  # [2, 1, 3, 3]
    return torch.cat(
        [conv2d(chunk.float().mean(1, keepdim=True), kernels).square().sum(1).sqrt() for chunk in images.split(_CHUNK)]
    )


def edge_share(images: Tensor, threshold: float = EDGE_THRESHOLD) -> Tensor:
    """Share of the pixels in each image whose gradient is above `threshold`, [N]."""
    return (gradient_magnitude(images) > threshold).float().mean((-2, -1))


def edge_density(images: Tensor, threshold: float = EDGE_THRESHOLD) -> float:
    """Share of all pixels whose Sobel gradient magnitude exceeds `threshold`, image units per pixel."""
    return edge_share(images, threshold).double().mean().item()


def gradient_histogram(images: Tensor) -> Tensor:
    """Share of the pixels in each image that fall into each bin of gradient magnitude, [N, 512].

    The 512 equal bins cover [0, sqrt 2]. Larger magnitudes, which occur only in images outside [-1, 1], count in
    the last bin.
    """
    magnitude = gradient_magnitude(images).flatten(1)  # [N, P]
    bins = (magnitude / BIN_WIDTH).long().clamp_max(NUM_BINS - 1)
    counts = torch.zeros(len(magnitude), NUM_BINS, device=magnitude.device)
    counts.scatter_add_(1, bins, torch.ones_like(magnitude))
    return counts / magnitude.shape[1]


def gradient_distance_from_histograms(histogram_a: Tensor, histogram_b: Tensor) -> float:
    """Wasserstein-1 distance of two mean `gradient_histogram` rows [512]: the area between their CDFs."""
    if histogram_a.shape != histogram_b.shape or histogram_a.ndim != 1:
        raise ValueError(f"histograms have shapes {list(histogram_a.shape)} and {list(histogram_b.shape)}")
    return (histogram_a.double() - histogram_b.double()).cumsum(0).abs().sum().item() * BIN_WIDTH


def gradient_distance(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance between the gradient magnitudes of two sets of images, image units per pixel.

    It is exact up to the width of a bin (0.0028) and symmetric: too flat and too steep count the same.
    """
    return gradient_distance_from_histograms(gradient_histogram(a).mean(0), gradient_histogram(b).mean(0))
