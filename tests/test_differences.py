"""Paired differences: coverage, correction, and the spread of trainings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distill.evaluation.differences import (
    Difference,
    Resampled,
    answer,
    differences,
    holm,
    resampled,
    resampled_sets,
)
from distill.metrics import MEASURES, measure, reference_from_images
from distill.metrics.bootstrap import resample_counts
from distill.metrics.colour import tones
from distill.metrics.features import Features

LABELS = torch.arange(60) % 3


def pictures(seed: int, contrast: float = 1.0, num: int = 60) -> Tensor:
    coarse = torch.randn(num, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (contrast * 0.4 * interpolate(coarse, size=(24, 24), mode="bicubic")).clamp(-1, 1)


@pytest.fixture(scope="module")
def data():
    return reference_from_images(pictures(0, num=400), torch.arange(400) % 3, None, "pictures")


def found_in(first: list[Tensor], second: list[Tensor], data) -> dict[str, Difference]:
    sides = [[resampled(x, LABELS, data, num_resamples=100) for x in side] for side in (first, second)]
    return {one.measure: one for one in differences(*sides, data, len(LABELS))}


def test_pairs_see_what_sets_cannot(data) -> None:
    """A little less contrast in the same pictures is clear; in other pictures their scatter hides it."""
    same = found_in([pictures(1, 1.5)], [pictures(1, 1.48)], data)["contrast"]
    other = found_in([pictures(1, 1.5)], [pictures(2, 1.48)], data)["contrast"]
    assert same.is_clear and same.gain < 0 and not other.is_clear
    assert same.error < 0.3 * other.error and same.smallest < abs(same.gain) < other.smallest
    equal = found_in([pictures(1)], [pictures(1)], data)
    assert not any(one.is_clear for one in equal.values())


def of_contrast(images: Tensor, num_resamples: int = 100) -> list[dict[str, Resampled]]:
    """One training with its contrast alone."""
    rows = tones(images)[:, :1].double()
    means = resample_counts(len(rows), num_resamples, 0) @ rows / len(rows)
    return [{"contrast": Resampled(float(rows.mean()), means[:, 0])}]


def test_intervals_of_a_gain_hold_their_95_percent(data) -> None:
    of_data = float(data.mean("tones")[0])
    many = (of_contrast(pictures(9, scale, num=6000), 2)[0]["contrast"].value for scale in (1.5, 1.4))
    first, second = (abs(value - of_data) for value in many)
    held = 0
    for seed in range(1000, 1400, 2):
        sides = of_contrast(pictures(seed, 1.5)), of_contrast(pictures(seed + 1, 1.4))
        (one,) = differences(*sides, data, 60)
        held += one.low <= second - first <= one.high
    assert 0.90 <= held / 200 <= 0.99


class Channels:
    """An extractor whose features are coarse pixels, and whose class is the sign of the mean."""

    name, version, feature_dim = "channels", "0", 16

    def extract(self, images: Tensor) -> Features:
        logits = torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3)), torch.full((len(images),), -9.0)], 1)
        return Features(interpolate(images, size=(4, 4), mode="area").flatten(1), logits)


def of_sets(images: Tensor, data, teacher, seed: int = 0) -> list[dict[str, Resampled]]:
    return [resampled_sets(Channels().extract(images), LABELS, data, teacher, num_resamples=100, seed=seed)]


def test_measures_of_whole_sets_are_those_of_the_page_and_compared_in_pairs() -> None:
    extractor: Any = Channels()
    data, teacher = (
        reference_from_images(pictures(seed, scale, 400), torch.arange(400) % 3, extractor, "pictures")
        for seed, scale in ((0, 1.0), (3, 0.8))
    )
    first, second = pictures(1, 0.7), pictures(1, 0.6)
    measured = measure(first, LABELS, data=data, teacher=teacher, extractor=extractor, num_bootstrap=50)
    names = ["frechet", "frechet_teacher", "kid", "precision", "class_agreement"]
    ours = of_sets(first, data, teacher)[0]
    assert list(ours) == names
    for name in names:
        assert ours[name].value == pytest.approx(measured[name].value, rel=1e-5), name
    deviation = (measured["kid"].high - measured["kid"].low) / 2 / 1.96
    assert float(ours["kid"].resamples.std()) == pytest.approx(deviation, rel=0.25)
    same = {d.measure: d for d in differences(of_sets(first, data, teacher), of_sets(second, data, teacher), data, 60)}
    apart = of_sets(pictures(2, 0.6), data, teacher, seed=1)
    other = {d.measure: d for d in differences(of_sets(first, data, teacher), apart, data, 60)}
    for name in ("frechet", "frechet_teacher"):
        assert same[name].gain > 0 and same[name].p < 0.01, name
        assert same[name].error < 0.3 * other[name].error, name
    assert answer("a", "b", [*same.values()])[0].startswith("Distribution: a is better than b")


def test_a_measure_of_sets_that_needs_what_is_not_there_is_left_out() -> None:
    features = Features(torch.randn(60, 300))
    data = reference_from_images(pictures(0, num=400), torch.arange(400) % 3, None, "pictures")
    for reference in (data, None):
        assert resampled_sets(features, LABELS, reference, None, num_resamples=2) == {}


def test_a_distance_to_data_that_are_not_there_is_left_out(data) -> None:
    found = [{*resampled(pictures(1), LABELS, of, num_resamples=2)} for of in (data, replace(data, tables={}), None)]
    assert found[1] == found[2] == {name for name in found[0] if not name.endswith("_data")} < found[0]


def test_holm_by_hand() -> None:
    blank = Difference("grain", *[0.0] * 10)
    found = holm([replace(blank, p=p) for p in (0.04, 0.01, 0.03, 0.5)])
    assert [one.adjusted for one in found] == pytest.approx([0.09, 0.04, 0.09, 0.5])


def test_the_spread_of_trainings_is_a_part_of_the_error(data) -> None:
    def side(*values: float) -> list[dict[str, Resampled]]:
        return [{"grain": Resampled(v, torch.full((50,), v) + 1e-6 * torch.randn(50))} for v in values]

    of_data = data.mean("grain_power")[0] * 1000
    base = float(of_data) + 10
    (one,) = differences(side(base, base + 2, base + 4), side(base + 5, base + 5, base + 5), data, 60)
    assert one.gain == pytest.approx(3, rel=1e-4)
    assert one.error == pytest.approx(math.sqrt(4 / 3), rel=1e-3)
    assert one.high - one.gain == pytest.approx(4.303 * one.error, rel=1e-3)  # t with 2 degrees of freedom
    assert not one.is_clear


def test_the_answer_says_which_and_what_cannot_be_told(data) -> None:
    blank = Difference("grain", 1.0, 2.0, 1.5, 0.5, 0.1, 0.3, 0.7, 0.001, 0.1, 0.28)
    found = [
        replace(blank, measure="edge_width", adjusted=0.01),
        replace(blank, measure="edge_count", gain=-0.5, adjusted=0.02),
        replace(blank, adjusted=0.3),
        replace(blank, measure="contrast", adjusted=0.0001),
    ]
    edges, grain, colour = answer("dar", "plain", found)
    assert edges == (
        "Edges: dar is better in edge width 1 against 2, data 1.5 (p = 0.01), "
        "plain in edges 1 against 2, data 1.5 (p = 0.02)."
    )
    assert grain.startswith("Grain: cannot be told.") and "0.28" in grain
    assert colour.startswith("Colour: dar is better than plain: contrast") and "p < 0.001" in colour
    assert set(MEASURES) >= {one.measure for one in found}
