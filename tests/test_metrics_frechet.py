"""Feature distances against closed forms and torch-fidelity's own values."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import mmd2
from torch_fidelity.metric_prc import calculate_precision_recall_full

from distill.metrics.bootstrap import resample_counts
from distill.metrics.frechet import (
    FrechetStatistics,
    frechet_distance,
    frechet_interval,
    frechet_statistics,
    kid,
    precision_recall,
)


def gaussian(num_images: int, dim: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_images, dim, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_have_no_distance():
    features = gaussian(300)
    features[:, 3] = 0  # a dead feature: a singular covariance
    statistics = frechet_statistics(features)
    assert 0 <= frechet_distance(statistics, statistics) < 1e-6


def test_two_gaussians_have_the_closed_form():
    # Commuting covariances: |mu_a - mu_b|^2 + sum (sqrt a - sqrt b)^2.
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([4.0, 1, 9, 0.25, 5])
    mu_a, mu_b = np.zeros(5), np.array([1.0, 0, 2, 0, 0])
    left = FrechetStatistics(mu_a, rotation @ np.diag(a) @ rotation.T, 10)
    right = FrechetStatistics(mu_b, rotation @ np.diag(b) @ rotation.T, 20)
    expected = 5 + ((a**0.5 - b**0.5) ** 2).sum()
    assert frechet_distance(left, right) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(right, left) == pytest.approx(expected, rel=1e-9)


def test_value_is_torch_fidelitys():
    a, b = gaussian(200), 1.5 * gaussian(300, seed=1) + 0.2
    expected = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), verbose=False
    )["frechet_inception_distance"]
    assert frechet_distance(frechet_statistics(a), frechet_statistics(b)) == pytest.approx(expected, rel=1e-12)


def test_interval_agrees_with_resampling_the_features_themselves():
    features, reference = gaussian(150, 4), frechet_statistics(gaussian(4000, 4, seed=1) + 0.5)
    interval = frechet_interval(features, reference, num_resamples=40, seed=3)
    assert interval.value == frechet_distance(frechet_statistics(features), reference)
    direct = [
        frechet_distance(frechet_statistics(features.repeat_interleave(counts.long(), dim=0)), reference)
        for counts in resample_counts(150, 40, seed=3)
    ]
    margin = 1.959964 * np.std(direct, ddof=1)
    assert (interval.low, interval.high) == pytest.approx((interval.value - margin, interval.value + margin), rel=1e-6)


def test_wide_features_get_no_interval():
    interval = frechet_interval(gaussian(20, 300), frechet_statistics(gaussian(20, 300, seed=1)), num_resamples=40)
    assert interval.value > 0 and np.isnan(interval.low) and np.isnan(interval.high)


def test_kid_of_one_distribution_is_nil_and_grows_with_a_shift():
    same = kid(gaussian(600), gaussian(700, seed=1))
    assert same.low < 0 < same.high and abs(same.value) < 0.02
    shifted = kid(gaussian(600), gaussian(700, seed=1) + 0.5)
    assert shifted.low > same.high
    assert shifted.low < shifted.value < shifted.high


def test_kid_has_the_closed_form_of_point_masses():
    # k(x, y) = (x . y / D + 1)^3: points at 0 and at x give k(x, x) - 2 + 1.
    zeros, points = torch.zeros(8, 4), torch.full((8, 4), 1.0)
    assert kid(zeros, points).value == pytest.approx(8 - 2 + 1)


def test_kid_is_the_unbiased_estimate_of_all_images_whatever_the_chunks(monkeypatch):
    a, b = gaussian(50), gaussian(50, seed=1) + 0.3
    kernels = [((x.double() @ y.double().T / 8 + 1) ** 3).numpy() for x, y in ((a, a), (a, b), (b, b))]
    expected = mmd2(*kernels, mmd_est="unbiased")
    assert kid(a, b).value == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("distill.metrics.frechet._CHUNK", 16)
    assert kid(a, b).value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_images", [50, 400])
def test_kid_interval_has_the_spread_of_disjoint_sets(num_images):
    reference = gaussian(1000, seed=999) + 0.3
    values = [kid(gaussian(num_images, seed=s), reference) for s in range(60)]
    spread = np.std([interval.value for interval in values], ddof=1)
    width = np.mean([interval.high - interval.low for interval in values])
    assert width == pytest.approx(2 * 1.96 * spread, rel=0.25)  # of 60 sets the spread itself is known to 9 %


def test_precision_and_recall_are_not_swapped():
    # The generated set covers one of two clusters: believable, half the variety.
    generated = gaussian(400, 2)
    real = torch.cat([gaussian(400, 2, seed=1), gaussian(400, 2, seed=2) + 100])
    precision, recall = precision_recall(generated, real)
    assert precision.value > 0.9
    assert recall.value == pytest.approx(0.5, abs=0.05)
    assert precision.low < precision.value < precision.high
    assert np.isnan(recall.low) and np.isnan(recall.high)
    expected = calculate_precision_recall_full(generated, real, neighborhood=3)
    assert (precision.value, recall.value) == pytest.approx(expected, abs=1e-6)


def test_too_few_images_and_mismatched_features():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_statistics(gaussian(1))
    for function in (kid, precision_recall):
        with pytest.raises(ValueError, match="at least 4"):
            function(gaussian(3), gaussian(50))
        with pytest.raises(ValueError, match="8 and 9 features"):
            function(gaussian(50), gaussian(50, 9))
    with pytest.raises(ValueError, match="8 and of 9"):
        frechet_distance(frechet_statistics(gaussian(50)), frechet_statistics(gaussian(50, 9)))
    with pytest.raises(ValueError, match="nan"):
        frechet_statistics(torch.full((5, 2), float("nan")))
