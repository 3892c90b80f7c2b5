"""Distances of whole sets in the features of an extractor: Fréchet distances, KID, precision, recall, diversity.

Fréchet distance: |mu_a - mu_b|^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (arXiv:1706.08500), by
torch-fidelity; on Inception's features it is FID, on DINOv2's FD-DINOv2 (arXiv:2306.04675), on seven channels of an
inner layer sFID (arXiv:2103.03841), on crops at full resolution the patch FID of arXiv:2402.13929. It falls as images
are added, so only equal numbers compare. Inception score: arXiv:1606.03498, by torch-fidelity in ten parts.

The value of one half of the data against the other says what real images would have at that number.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval, share_interval
from distill.metrics.features import patch_features
from distill.metrics.frechet import (
    MIN_IMAGES,
    FrechetStatistics,
    frechet_distance,
    frechet_interval,
    frechet_statistics,
    precision_recall,
)
from distill.metrics.frechet import kid as kid_of_features
from distill.metrics.perceptual import class_diversity
from distill.metrics.reference import ReferenceStatistics
from distill.metrics.registry import Context, register_measure

RESAMPLES = 50
MOST_FEATURES = 10_000  # of the data, evenly spread: KID, precision and recall take the square of their number
IN_HALVES = 1000  # images of either half of the data, for what takes seconds of more
SCORE_PARTS = 10  # of the Inception score


def _frechet(context: Context, features: Tensor | None, target: FrechetStatistics | None) -> Interval | None:
    if features is None or target is None:
        return None
    resamples = min(RESAMPLES, context.num_bootstrap)
    return frechet_interval(features, target, num_resamples=resamples, seed=context.seed)


def _halves(reference: ReferenceStatistics, num: int | None = None) -> tuple[Tensor, Tensor] | None:
    """Features of both halves of the data, at most `num` of each."""
    features = torch.from_numpy(reference.features).float()
    if not features.shape[1] or len(features) < 2 * MIN_IMAGES:
        return None
    return features[::2][:num], features[1::2][:num]


def _half_frechet(reference: ReferenceStatistics) -> float:
    halves = _halves(reference)
    return frechet_distance(*map(frechet_statistics, halves)) if halves else math.nan


@register_measure(
    "sets",
    "Fréchet distance to data",
    ideal="lower",
    explanation="distance between Gaussians fitted to the features of these images and of the data",
    of_half=_half_frechet,
)
def frechet(context: Context) -> Interval | None:
    extracted = context.extracted
    return _frechet(context, extracted and extracted.features, context.data and context.data.frechet())


@register_measure(
    "sets",
    "Fréchet distance to teacher",
    ideal="lower",
    explanation="the same distance to the teacher's images: what distillation itself changed",
)
def frechet_teacher(context: Context) -> Interval | None:
    extracted = context.extracted
    return _frechet(context, extracted and extracted.features, context.teacher and context.teacher.frechet())


@register_measure(
    "sets",
    "sFID",
    ideal="lower",
    explanation="Fréchet distance in an inner layer of Inception that knows where things are",
)
def spatial_frechet(context: Context) -> Interval | None:
    extracted = context.extracted
    return _frechet(context, extracted and extracted.spatial, context.data and context.data.frechet("spatial"))


@register_measure(
    "sets",
    "Patch Fréchet distance",
    ideal="lower",
    explanation="Fréchet distance of crops at full resolution, where the whole would be made smaller",
)
def patch_frechet(context: Context) -> Interval | None:
    target = context.data and context.data.frechet("patches")
    if context.extractor is None or target is None:
        return None
    return _frechet(context, patch_features(context.extractor, context.stills), target)


def _half_kid(reference: ReferenceStatistics) -> float:
    halves = _halves(reference, IN_HALVES)
    return 1000 * kid_of_features(halves[1], halves[0]).value if halves else math.nan


@register_measure(
    "sets",
    "KID x 1000",
    ideal="lower",
    explanation="kernel distance between the features of these images and of the data, unbiased at any count",
    of_half=_half_kid,
)
def kid(context: Context) -> Interval | None:
    features = _features_to_compare(context)
    if features is None:
        return None
    interval = kid_of_features(*features)
    return Interval(1000 * interval.value, 1000 * interval.low, 1000 * interval.high)


@register_measure(
    "sets",
    "Inception score",
    ideal="higher",
    explanation="how sure and how varied Inception's 1008 classes are; says little of images unlike ImageNet's",
    has_interval=False,
)
def inception_score(context: Context) -> Interval | None:
    logits = context.extracted.inception_logits if context.extracted else None
    if logits is None or len(logits) < SCORE_PARTS:
        return None
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    return Interval(float(isc_features_to_metric(logits, splits=SCORE_PARTS)[KEY_METRIC_ISC_MEAN]), math.nan, math.nan)


def _features_to_compare(context: Context) -> tuple[Tensor, Tensor] | None:
    """Features of the images and of the data; None where there is nothing to compare."""
    of_data = features_of_data(context.data)
    return None if context.extracted is None or of_data is None else (context.extracted.features, of_data)


def features_of_data(data: ReferenceStatistics | None) -> Tensor | None:
    """At most `MOST_FEATURES` rows; None where there are too few to compare with."""
    if data is None or not data.features.size or len(data.features) < MIN_IMAGES:
        return None
    return torch.from_numpy(data.features[:: -(-len(data.features) // MOST_FEATURES)]).float()


def _precision_recall(context: Context) -> tuple[Interval | None, Interval | None]:
    features = _features_to_compare(context)
    return precision_recall(*features) if features else (None, None)


def _half_precision_recall(which: int, reference: ReferenceStatistics) -> float:
    halves = _halves(reference, IN_HALVES)
    return precision_recall(halves[1], halves[0])[which].value if halves else math.nan


@register_measure(
    "sets",
    "Precision",
    unit="share",
    ideal="higher",
    explanation="share of these images that lie among the data: how believable they are",
    of_half=partial(_half_precision_recall, 0),
)
def precision(context: Context) -> Interval | None:
    return context.once(_precision_recall)[0]


@register_measure(
    "sets",
    "Recall",
    unit="share",
    ideal="higher",
    explanation="share of the data that lies among these images: how much of the variety is covered; falls as images "
    "are added, so that only equal numbers of them compare",
    has_interval=False,
    of_half=partial(_half_precision_recall, 1),
)
def recall(context: Context) -> Interval | None:
    return context.once(_precision_recall)[1]


@register_measure(
    "sets",
    "Class agreement",
    unit="share",
    ideal="higher",
    explanation="share of images that a classifier takes for the class that was asked for",
    of_data=lambda reference: reference.class_agreement,
)
def class_agreement(context: Context) -> Interval | None:
    logits = context.extracted.logits if context.extracted else None
    if logits is None:
        return None
    agrees = (logits.argmax(1) == context.labels).double()
    return share_interval(agrees.mean().item(), len(agrees))


@register_measure(
    "sets",
    "Diversity inside classes",
    unit="perceptual distance",
    ideal="as data",
    explanation="mean LPIPS (or its stand-in) of pairs of one class",
    of_data=lambda reference: reference.diversity,
)
def lpips_diversity(context: Context) -> Interval | None:
    if context.perceptual is None:
        return None
    distances = class_diversity(context.perceptual, context.stills, context.labels, seed=context.seed)
    return context.of_values(distances) if len(distances) >= 2 else None
