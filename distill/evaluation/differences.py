"""Whether two sets of images differ in a measure, by how much, and what could have been seen.

Images of both sides come from the same noise and conditions, so a bootstrap draws the same places on both sides, and
what is common to a pair drops out. Where an arm has several trainings, their spread is a part of the error, as the
next training would differ, too: variance = that over images + s_a^2 / k_a + s_b^2 / k_b, with t of Satterthwaite's
degrees of freedom. P-values are corrected over measures by Holm's method (Scandinavian Journal of Statistics 6, 1979).

Of a measure that is best "as data", sides are compared by how far they are from the data's value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from scipy import stats
from torch import Tensor

from distill.metrics import MEASURES, Measure, PerceptualDistance, ReferenceStatistics, data_values, rows_of
from distill.metrics.bootstrap import resample_counts
from distill.metrics.features import Features
from distill.metrics.frechet import frechet_distance, frechet_resamples, frechet_statistics, kid_rows, precision_rows
from distill.metrics.images import stills
from distill.metrics.perceptual import class_diversity
from distill.metrics.sets import features_of_data

LEVEL = 0.95
POWER = 0.8  # with which the smallest difference is shown
SET_RESAMPLES = 50  # of what takes longer than a mean


@dataclass(frozen=True)
class Difference:
    """One measure of two arms. first, second: their values, means over trainings. data: nan where there is none.

    gain: how much better the first is, in the unit of the measure: nearer to the data, or lower. error: its standard
    error. low, high: its 95 % interval. p: two-sided; adjusted: by Holm over the measures. effect: gain over the
    standard deviation of one image. smallest: the gain that would have been found with a power of 80 %.
    """

    measure: str
    first: float
    second: float
    data: float
    gain: float
    error: float
    low: float
    high: float
    p: float
    effect: float
    smallest: float
    adjusted: float = math.nan

    @property
    def is_clear(self) -> bool:
        return self.adjusted <= 1 - LEVEL

    def to_json(self) -> dict[str, float | str | None]:
        """With null for nan, which JSON does not have."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Resampled:
    """A measure of one set of images: its value, and its values in every resample, [R]."""

    value: float
    resamples: Tensor


def resampled(
    images: Tensor,
    labels: Tensor,
    data: ReferenceStatistics | None,
    perceptual: PerceptualDistance | None = None,
    *,
    num_resamples: int = 200,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Every measure of mean rows, and the diversity inside classes; equal seeds draw equal places of any images."""
    found: dict[str, Resampled] = {}
    counts = resample_counts(len(images), num_resamples, seed)
    for table in dict.fromkeys(measure.table for measure in MEASURES.values() if measure.table):
        rows = rows_of(table, images).double()
        means = counts @ rows / len(images)
        for measure in (entry for entry in MEASURES.values() if entry.table == table and entry.of_row):
            assert measure.of_row is not None
            value = measure.of_row(rows.mean(0), data)
            if math.isfinite(value):
                values = torch.tensor([measure.of_row(row, data) for row in means], dtype=torch.float64)
                found[measure.name] = Resampled(value, values)
    if perceptual is not None:
        distances = class_diversity(perceptual, stills(images), labels).double()
        if len(distances) > 1:
            pairs = resample_counts(len(distances), num_resamples, seed + 1)
            found["lpips_diversity"] = Resampled(float(distances.mean()), pairs @ distances / len(distances))
    return found


def resampled_sets(
    features: Features,
    labels: Tensor,
    data: ReferenceStatistics | None,
    teacher: ReferenceStatistics | None,
    *,
    num_resamples: int,
    seed: int = 0,
) -> dict[str, Resampled]:
    """Measures of whole sets, of `features` of one set's images; equal seeds draw equal places.

    Of KID a resample moves as the mean of its images' parts does (Hoeffding 1948). Recall is not among them: the
    neighbourhoods of images that occur twice are others.
    """
    found: dict[str, Resampled] = {}
    for name, reference in (("frechet", data), ("frechet_teacher", teacher)):
        target = reference and reference.frechet()
        if target is not None:
            resamples = frechet_resamples(features.features, target, num_resamples=num_resamples, seed=seed)
            if len(resamples):
                value = frechet_distance(frechet_statistics(features.features), target)
                found[name] = Resampled(value, resamples)
    counts = resample_counts(len(labels), num_resamples, seed)
    of_data, shares = features_of_data(data), {}
    if of_data is not None:
        value, rows = kid_rows(features.features, of_data)
        found["kid"] = Resampled(1000 * value, 1000 * (value + counts @ (rows - rows.mean()) / len(rows)))
        shares["precision"] = precision_rows(features.features, of_data)
    if features.logits is not None:
        shares["class_agreement"] = features.logits.argmax(1) == labels
    for name, rows in shares.items():
        found[name] = Resampled(float(rows.double().mean()), counts @ rows.double() / len(rows))
    return found


def differences(
    first: Sequence[Mapping[str, Resampled]],
    second: Sequence[Mapping[str, Resampled]],
    data: ReferenceStatistics | None,
    num_images: int,
) -> list[Difference]:
    """All measures that both sides have, in the order of the table. A side is one or more trainings."""
    of_data = data_values(data) if data is not None else {}
    common = [name for name in MEASURES if all(name in side for side in (*first, *second))]
    found = [
        difference
        for name in common
        if (difference := _difference(MEASURES[name], first, second, of_data.get(name, math.nan), num_images))
    ]
    return holm(found)


def _difference(
    measure: Measure,
    first: Sequence[Mapping[str, Resampled]],
    second: Sequence[Mapping[str, Resampled]],
    data: float,
    num_images: int,
) -> Difference | None:
    if measure.ideal == "none" or (measure.ideal == "as data" and math.isnan(data)):
        return None
    sides = [[side[measure.name] for side in arm] for arm in (first, second)]

    def loss(value: Tensor) -> Tensor:
        return {"as data": (value - data).abs(), "lower": value, "higher": -value}[measure.ideal]

    losses = [torch.tensor([float(loss(torch.tensor(one.value))) for one in side]) for side in sides]
    gain = float(losses[1].mean() - losses[0].mean())
    over_images = [torch.stack([loss(one.resamples) for one in side]).mean(0) for side in sides]
    variance = float((over_images[1] - over_images[0]).var())
    over_trainings = [float(side.var()) / len(side) if len(side) > 1 else 0.0 for side in losses]
    error = math.sqrt(variance + sum(over_trainings))
    if not error:
        return None
    freedom = _freedom(error, over_trainings, [len(side) for side in losses])
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    p = float(2 * stats.t.sf(abs(gain) / error, freedom))
    effect = gain / math.sqrt(variance * num_images) if variance else math.nan
    smallest = (quantile + float(stats.t.ppf(POWER, freedom))) * error
    mean_1, mean_2 = (sum(one.value for one in side) / len(side) for side in sides)
    return Difference(
        measure.name,
        mean_1,
        mean_2,
        data,
        gain,
        error,
        gain - quantile * error,
        gain + quantile * error,
        p,
        effect,
        smallest,
    )


def _freedom(error: float, over_trainings: Sequence[float], counts: Sequence[int]) -> float:
    """Satterthwaite's; the part over images has as good as infinitely many."""
    parts = sum(part**2 / (count - 1) for part, count in zip(over_trainings, counts, strict=True) if count > 1)
    return error**4 / parts if parts else 1e9


def holm(found: Sequence[Difference]) -> list[Difference]:
    """The same with p-values corrected for their number: the largest of (m - i) p_i up to a place, at most 1."""
    order = sorted(range(len(found)), key=lambda i: found[i].p)
    adjusted, largest = [math.nan] * len(found), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - place) * found[i].p))
        adjusted[i] = largest
    return [replace(one, adjusted=value) for one, value in zip(found, adjusted, strict=True)]


FAMILIES: dict[str, tuple[str, ...]] = {
    "distribution": ("frechet", "frechet_teacher", "kid", "precision", "class_agreement"),
    "edges": ("edge_width", "edge_count", "gradient_distance_data"),
    "grain": ("grain", "sparsity_fine"),
    "colour": ("colourfulness", "contrast", "clipped_share", "colour_drift_data"),
    "variety": ("lpips_diversity",),
    "motion": ("flicker", "motion"),
}


def answer(first: str, second: str, found: Sequence[Difference]) -> list[str]:
    """In words, a line for each of distribution, edges, grain, colour, variety and, of videos, motion."""
    by_name = {one.measure: one for one in found}
    lines = []
    for family, names in FAMILIES.items():
        known = [by_name[name] for name in names if name in by_name]
        if known:
            lines.append(f"{family.capitalize()}: {_line(first, second, known)}")
    return lines


def _line(first: str, second: str, known: Sequence[Difference]) -> str:
    clear = [one for one in known if one.is_clear]
    if not clear:
        nearest = min(known, key=lambda one: one.adjusted)
        smallest = f"a gain of {nearest.smallest:.2g} would have been found four times of five"
        words = _words(nearest)
        return f"cannot be told. {words[0].upper()}{words[1:]}; {smallest}."
    better, worse = ([one for one in clear if (one.gain > 0) == sign] for sign in (True, False))
    if better and worse:
        return f"{first} is better in {_all(better)}, {second} in {_all(worse)}."
    ahead, behind = (first, second) if better else (second, first)
    return f"{ahead} is better than {behind}: {_all(better or worse)}."


def _all(clear: Sequence[Difference]) -> str:
    return "; ".join(_words(one) for one in clear)


def _words(one: Difference) -> str:
    data = "" if math.isnan(one.data) else f", data {one.data:.4g}"
    chance = "p < 0.001" if one.adjusted < 0.001 else f"p = {one.adjusted:.2g}"
    title = MEASURES[one.measure].title
    return f"{title[0].lower()}{title[1:]} {one.first:.4g} against {one.second:.4g}{data} ({chance})"
