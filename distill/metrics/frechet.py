"""Fréchet distance, KID, precision and recall of two sets of features. All except KID use torch-fidelity's functions.

Features are [N, D]; the first set is generated, the second set is real.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval, interval_from_resamples, resample_counts, share_interval

MAX_BOOTSTRAP_DIM = 256  # above this, the eigenvalues of each resample take seconds
_CHUNK = 250  # rows of a kernel matrix per product
NEIGHBOURHOOD = 3  # k of the k-th nearest neighbour, as in arXiv:1904.06991
MIN_IMAGES = NEIGHBOURHOOD + 1


@dataclass(frozen=True)
class FrechetStatistics:
    """Mean mu [D] and covariance sigma [D, D] (divisor N - 1), float64, of the features of N images."""

    mu: np.ndarray
    sigma: np.ndarray
    num_images: int


def frechet_statistics(features: Tensor) -> FrechetStatistics:
    """Mean and covariance of features [N, D].

    Raises: ValueError if there are fewer than 2 images or values are not finite.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics

    _check_features(features, 2)
    statistics = fid_features_to_statistics(features.detach().cpu().double())
    # np.cov returns a scalar for a single feature
    return FrechetStatistics(statistics["mu"], np.atleast_2d(statistics["sigma"]), len(features))


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)). Heusel et al., arXiv:1706.08500.

    Rounding can make the distance of equal statistics slightly negative; such values are returned as 0.

    Raises: ValueError if the two have different numbers of features.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if a.mu.shape != b.mu.shape:
        raise ValueError(f"statistics of {len(a.mu)} and of {len(b.mu)} features cannot be compared")
    pair = ({"mu": side.mu, "sigma": side.sigma} for side in (a, b))
    return max(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID], 0.0)


def frechet_interval(features: Tensor, reference: FrechetStatistics, *, num_resamples: int, seed: int = 0) -> Interval:
    """Fréchet distance of features [N, D] to `reference`, with a bootstrap interval over the N images.

    Above 256 features the limits are nan: not estimated.
    """
    value = frechet_distance(frechet_statistics(features), reference)
    resamples = frechet_resamples(features, reference, num_resamples=num_resamples, seed=seed)
    return interval_from_resamples(value, resamples.numpy(), minimum=0.0)


def frechet_resamples(features: Tensor, reference: FrechetStatistics, *, num_resamples: int, seed: int) -> Tensor:
    """The distance in each resample, [num_resamples] in float64; none above 256 features."""
    if features.shape[1] > MAX_BOOTSTRAP_DIM:
        num_resamples = 0
    rows = features.detach().cpu().double()
    num_images = len(rows)
    resampled = []
    for counts in resample_counts(num_images, num_resamples, seed):
        # Mean and covariance of each resample, from the number of times that it contains each image.
        mu = counts @ rows / num_images
        centred = rows - mu
        sigma = (centred * counts[:, None]).T @ centred / (num_images - 1)
        statistics = FrechetStatistics(mu.numpy(), sigma.numpy(), num_images)
        resampled.append(frechet_distance(statistics, reference))
    return torch.tensor(resampled, dtype=torch.float64)


def kid(features: Tensor, reference: Tensor) -> Interval:
    """Kernel Inception distance: squared MMD with k(x, y) = (x . y / D + 1)^3, unbiased. arXiv:1801.01401.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j) over all images x of `features`
    and y of `reference`; may be slightly negative. With y fixed, image i changes it by 2 h_i / n, where
    h_i = mean_{j != i} k(x_i, x_j) - mean_j k(x_i, y_j); the limits are plus and minus 1.96 * 2 std(h) / sqrt(n)
    (Hoeffding 1948).

    Raises: as `kid_rows`.
    """
    value, rows = kid_rows(features, reference)
    margin = 1.96 * rows.std().item() / math.sqrt(len(features))
    return Interval(value, value - margin, value + margin)


def kid_rows(features: Tensor, reference: Tensor) -> tuple[float, Tensor]:
    """The distance, and 2 h_i of each image, [N] in float64: with other images it would move as their mean does.

    Raises: ValueError if either set has fewer than 4 images or the numbers of features differ.
    """
    _check_pair(features, reference, MIN_IMAGES)
    features, reference = features.detach().cpu().float(), reference.detach().cpu().float()
    own, across = _kernel_to_others(features), _kernel_means(features, reference)
    value = (own.mean() + _kernel_to_others(reference).mean() - 2 * across.mean()).item()
    return value, 2 * (own - across)


def _kernel_means(a: Tensor, b: Tensor) -> Tensor:
    """mean_j k(a_i, b_j), [N] in float64."""
    width = a.shape[1]
    rows = [(chunk @ b.T / width + 1).pow(3).mean(1, dtype=torch.float64) for chunk in a.split(_CHUNK)]
    return torch.cat(rows)


def _kernel_to_others(a: Tensor) -> Tensor:
    """mean_{j != i} k(a_i, a_j), [N] in float64."""
    itself = (a.double().square().mean(1) + 1).pow(3)
    return (len(a) * _kernel_means(a, a) - itself) / (len(a) - 1)


def precision_recall(features: Tensor, reference: Tensor) -> tuple[Interval, Interval]:
    """Improved precision and recall with 3 neighbours, arXiv:1904.06991.

    Precision is the share of generated images inside the neighbourhoods of the reference, with Wilson's interval.
    Recall is the share of the reference inside the neighbourhoods of the generated images. Those neighbourhoods
    change with every generated image and shrink as images are added. Recall therefore has no interval and falls with
    the number of images.

    Raises: ValueError if either set has fewer than 4 images or the numbers of features differ.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check_pair(features, reference, MIN_IMAGES)
    result = prc_features_to_metric(
        features.detach().cpu().float(),
        reference.detach().cpu().float(),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    precision = share_interval(result[KEY_METRIC_PRECISION], len(features))
    return precision, Interval(result[KEY_METRIC_RECALL], math.nan, math.nan)


def precision_rows(features: Tensor, reference: Tensor) -> Tensor:
    """Of each image whether it lies within the neighbourhood of one of the reference, [N].

    Precision is their share, which is all that torch-fidelity gives.

    Raises: as `precision_recall`.
    """
    _check_pair(features, reference, MIN_IMAGES)
    features, reference = features.detach().cpu().float(), reference.detach().cpu().float()
    place = NEIGHBOURHOOD + 1  # the nearest of all is the image itself
    radii = torch.cat([torch.cdist(part, reference).kthvalue(place).values for part in reference.split(_CHUNK)])
    return torch.cat([(torch.cdist(chunk, reference) <= radii).any(1) for chunk in features.split(_CHUNK)])


def _check_features(features: Tensor, min_images: int) -> None:
    if features.ndim != 2:
        raise ValueError(f"features have shape {list(features.shape)}; they must be [N, D]")
    if len(features) < min_images:
        raise ValueError(f"{len(features)} image(s) given; this measure needs at least {min_images}")
    if not torch.isfinite(features).all():
        raise ValueError("features hold nan or infinite values")


def _check_pair(features: Tensor, reference: Tensor, min_images: int) -> None:
    _check_features(features, min_images)
    _check_features(reference, min_images)
    if features.shape[1] != reference.shape[1]:
        raise ValueError(f"sets of {features.shape[1]} and {reference.shape[1]} features cannot be compared")


def check_moments(where: str, mu: np.ndarray, sigma: np.ndarray) -> None:
    """See that a mean and a covariance can be such. Raises: ValueError, which begins with `where`."""
    if mu.ndim != 1 or sigma.shape != mu.shape * 2:
        raise ValueError(f"{where}: mu and sigma have shapes {mu.shape} and {sigma.shape}; (D) and (D, D) are expected")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{where}: mu or sigma holds nan or infinite values")
    variances = np.diagonal(sigma)
    if (variances < 0).any():
        raise ValueError(f"{where}: sigma has a negative variance, {variances.min():.3g}, in row {variances.argmin()}")
    largest = np.sqrt(np.outer(variances, variances))
    if (np.abs(sigma) > largest * (1 + 1e-3) + 1e-9).any():
        raise ValueError(f"{where}: sigma is no covariance: a value is larger than the variances of its row and column")
    if np.abs(sigma - sigma.T).max(initial=0) > 1e-6 * variances.max(initial=0) + 1e-12:
        raise ValueError(f"{where}: sigma is no covariance: it is not symmetric")
