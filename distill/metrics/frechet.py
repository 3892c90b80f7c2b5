"""Fréchet distance, KID, precision and recall of two sets of features, all by torch-fidelity's own functions.

"features" are [N, D]; the first set is the generated one, the second the real one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval, bootstrap_share, interval_from_resamples, resample_counts

MAX_BOOTSTRAP_DIM = 256  # above, each resample's eigenvalues take seconds
KID_SUBSETS = 50
NEIGHBOURHOOD = 3  # k of the k-th nearest neighbour, as in arXiv:1904.06991


@dataclass(frozen=True)
class FrechetStatistics:
    """Mean mu [D] and covariance sigma [D, D] (divisor N - 1), float64, of the features of N images."""

    mu: np.ndarray
    sigma: np.ndarray
    num_images: int


def frechet_statistics(features: Tensor) -> FrechetStatistics:
    """Mean and covariance of features [N, D].

    Raises: ValueError where there are fewer than 2 images or values are not finite.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics

    _check_features(features, 2)
    statistics = fid_features_to_statistics(features.detach().cpu().double())
    # np.cov gives a bare number for a single feature
    return FrechetStatistics(statistics["mu"], np.atleast_2d(statistics["sigma"]), len(features))


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)). Heusel et al., arXiv:1706.08500.

    Rounding may leave equal statistics a hair below 0; such values come back as 0.
    Raises: ValueError where the two have different numbers of features.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if a.mu.shape != b.mu.shape:
        raise ValueError(f"statistics of {len(a.mu)} and of {len(b.mu)} features cannot be compared")
    pair = ({"mu": side.mu, "sigma": side.sigma} for side in (a, b))
    return max(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID], 0.0)


def frechet_interval(
    features: Tensor, reference: FrechetStatistics, *, num_resamples: int = 50, seed: int = 0
) -> Interval:
    """Fréchet distance of features [N, D] to `reference`, with a bootstrap interval over the N images.

    Above 256 features the limits are nan: not estimated.
    """
    value = frechet_distance(frechet_statistics(features), reference)
    if features.shape[1] > MAX_BOOTSTRAP_DIM:
        num_resamples = 0
    rows = features.detach().cpu().double()
    num_images = len(rows)
    resampled = []
    for counts in resample_counts(num_images, num_resamples, seed):
        # The mean and covariance of a resample, from how often each image is in it.
        mu = counts @ rows / num_images
        centred = rows - mu
        sigma = (centred * counts[:, None]).T @ centred / (num_images - 1)
        statistics = FrechetStatistics(mu.numpy(), sigma.numpy(), num_images)
        resampled.append(frechet_distance(statistics, reference))
    return interval_from_resamples(value, np.array(resampled), minimum=0.0)


def kid(features: Tensor, reference: Tensor, *, seed: int = 0) -> Interval:
    """Kernel Inception distance: unbiased squared MMD, cubic kernel. arXiv:1801.01401.

    May be slightly negative. Mean over 50 random subsets of m = min(1000, half the smaller set) images. The
    limits are 1.96 standard errors by subsampling: a spread s over subsets drawn without replacement from n
    means s sqrt(m / (n - m)) for all n, with n the smaller set's size (Politis & Romano 1994).

    Raises: ValueError where either set has fewer than 4 images or their widths differ.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    _check_pair(features, reference, 4)
    smaller = min(len(features), len(reference))
    subset_size = min(1000, smaller // 2)
    result = kid_features_to_metric(
        features.detach().cpu().float(),
        reference.detach().cpu().float(),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    value = result[KEY_METRIC_KID_MEAN]
    margin = 1.96 * result[KEY_METRIC_KID_STD] * math.sqrt(subset_size / (smaller - subset_size))
    return Interval(value, value - margin, value + margin)


def precision_recall(
    features: Tensor, reference: Tensor, *, num_resamples: int = 200, seed: int = 0
) -> tuple[Interval, Interval]:
    """Improved precision and recall with 3 neighbours, arXiv:1904.06991.

    Precision: share of generated images inside the reference's neighbourhoods; recall: the reverse. Each
    interval resamples the images that are counted and holds the neighbourhoods fixed.

    Raises: ValueError where either set has fewer than 4 images or their widths differ.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    _check_pair(features, reference, NEIGHBOURHOOD + 1)
    result = prc_features_to_metric(
        features.detach().cpu().float(),
        reference.detach().cpu().float(),
        prc_neighborhood=NEIGHBOURHOOD,
        prc_batch_size=1000,
        save_cpu_ram=True,
        verbose=False,
    )
    precision = bootstrap_share(result[KEY_METRIC_PRECISION], len(features), num_resamples=num_resamples, seed=seed)
    recall = bootstrap_share(result[KEY_METRIC_RECALL], len(reference), num_resamples=num_resamples, seed=seed)
    return precision, recall


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
