"""Intervals: coverage, seeds, and the fast paths against the plain one."""

import math

import numpy as np
import pytest
import torch

from distill.metrics.bootstrap import (
    bootstrap,
    bootstrap_mean,
    bootstrap_share,
    interval_from_resamples,
    resample_counts,
)


def test_interval_of_a_mean_has_the_textbook_width():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    interval = bootstrap(lambda indices: values[indices].mean().item(), 400, num_resamples=2000)
    half = 1.96 * values.std().item() / 20
    assert interval.value == pytest.approx(values.mean().item())
    assert interval.low == pytest.approx(interval.value - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.value + half, abs=0.1 * half)


def test_interval_covers_the_truth_about_95_times_in_100():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        table = torch.randn(60, 1, generator=generator) + 3
        interval = bootstrap_mean(table, lambda row: row.item(), num_resamples=200)
        covered += interval.low <= 3 <= interval.high
    assert 178 <= covered <= 199  # 190 expected, spread 3.1; the percentile interval covers a little less


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
    share = bootstrap_share(0.7, 500, num_resamples=4000)
    plain = bootstrap_mean(flags, lambda row: row.item(), num_resamples=4000)
    assert (share.value, share.low, share.high) == pytest.approx((plain.value, plain.low, plain.high), abs=0.005)


def test_seed_decides():
    values = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    intervals = [bootstrap_mean(values, lambda row: row.item(), seed=seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_counts_are_resamples_of_the_same_size():
    counts = resample_counts(30, 5, seed=0)
    assert counts.shape == (5, 30)
    assert (counts.sum(1) == 30).all()
    assert not torch.equal(counts[0], counts[1])


def test_bias_is_removed_and_limits_are_cut():
    interval = interval_from_resamples(0.1, np.linspace(0.0, 2.0, 2001), minimum=0.0)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(0.1 + 0.95)


def test_without_resamples_there_are_no_limits():
    interval = bootstrap(lambda indices: 1.0, 10, num_resamples=0)
    assert interval.value == 1.0 and math.isnan(interval.low) and math.isnan(interval.high)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        bootstrap(lambda indices: 0.0, 1)
    with pytest.raises(ValueError, match="num_resamples is -1"):
        bootstrap_share(0.5, 10, num_resamples=-1)
    with pytest.raises(ValueError, match="level is 95"):
        bootstrap(lambda indices: 0.0, 10, level=95)
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        bootstrap_share(1.5, 10)
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        bootstrap_mean(torch.zeros(5), lambda row: 0.0)
