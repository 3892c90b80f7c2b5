"""Intervals: coverage, seeds, and the fast paths against the plain one."""

import math

import numpy as np
import pytest
import torch

from distill.metrics.bootstrap import (
    bootstrap,
    bootstrap_mean,
    interval_from_resamples,
    resample_counts,
    share_interval,
)


def test_interval_of_a_mean_has_the_textbook_width():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap(lambda indices: values[indices].mean().item(), 400, num_resamples=2000)
    half = 1.96 * values.std().item() / 20
    assert interval.value == pytest.approx(values.mean().item())
    assert interval.low == pytest.approx(interval.value - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.1 * half)


@pytest.mark.parametrize("num_resamples", [50, 200])
def test_interval_covers_the_truth_about_95_times_in_100(num_resamples):
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(1000):
        table = torch.randn(60, 1, generator=generator) + 3
        interval = bootstrap_mean(table, lambda row: row.item(), num_resamples=num_resamples, seed=seed)
        covered += interval.low <= 3 <= interval.high
    assert 930 <= covered <= 970  # spread 7; between percentiles of 50 resamples it lies 910 times


def test_fast_path_of_means_agrees_with_the_plain_one():
    table = torch.rand(80, 2, generator=torch.Generator().manual_seed(1)) + 0.1
    fast = bootstrap_mean(table, lambda row: (row[0] / row[1]).item(), num_resamples=100, seed=3)

    def ratio(indices):
        row = table[indices].double().mean(0)
        return (row[0] / row[1]).item()

    plain = bootstrap(ratio, 80, num_resamples=100, seed=3)
    assert fast.value == pytest.approx(plain.value)
    assert (fast.low, fast.high) == pytest.approx((plain.low, plain.high), rel=1e-9)


def test_share_agrees_with_its_flags():
    flags = (torch.arange(500) < 350).double()[:, None]
    share = share_interval(0.7, 500)
    plain = bootstrap_mean(flags, lambda row: row.item(), num_resamples=4000)
    assert (share.value, share.low, share.high) == pytest.approx((plain.value, plain.low, plain.high), abs=0.005)


def test_limits_of_a_share_solve_the_score_equation():
    # Wilson: the limits are where |share - p| is 1.96 standard errors of that p.
    for share, n in ((0.3, 40), (0.97, 100), (0.0, 20), (1.0, 7)):
        interval = share_interval(share, n)
        assert 0 <= interval.low <= share <= interval.high <= 1
        for p in (interval.low, interval.high):
            assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-6)
    assert share_interval(1.0, 100).low == pytest.approx(0.963, abs=1e-3)
    for n in range(1, 100):
        assert share_interval(0.0, n).low == 0 and share_interval(1.0, n).high == 1


@pytest.mark.parametrize(("share", "n"), [(0.99, 100), (0.997, 500), (0.05, 20)])
def test_share_near_its_ends_is_covered(share, n):
    drawn = np.random.default_rng(0).binomial(n, share, 2000) / n
    intervals = [share_interval(value, n) for value in drawn]
    assert np.mean([interval.low <= share <= interval.high for interval in intervals]) > 0.91


def test_seed_decides():
    values = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    intervals = [bootstrap_mean(values, lambda row: row.item(), seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_counts_are_resamples_of_the_same_size():
    counts = resample_counts(30, 5, seed=0)
    assert counts.shape == (5, 30)
    assert (counts.sum(1) == 30).all()
    assert not torch.equal(counts[0], counts[1])


def test_bias_of_resamples_is_not_seen_and_limits_are_cut():
    resampled = np.array([1.0, 3.0])  # a standard deviation of sqrt 2
    interval = interval_from_resamples(0.1, resampled, minimum=0.0)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.1 + 1.959964 * math.sqrt(2))


def test_without_resamples_there_are_no_limits():
    interval = bootstrap(lambda indices: 1.0, 10, num_resamples=0)
    assert interval.value == 1.0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        bootstrap(lambda indices: 0.0, 1)
    with pytest.raises(ValueError, match="num_resamples is -1"):
        bootstrap(lambda indices: 0.0, 10, num_resamples=-1)
    for level in (95, 1, 0):
        with pytest.raises(ValueError, match=f"level is {level};"):
            share_interval(0.5, 10, level=level)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        share_interval(1.5, 10)
    with pytest.raises(ValueError, match="0 items"):
        share_interval(0.5, 0)
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        bootstrap_mean(torch.zeros(5), lambda row: 0.0)
