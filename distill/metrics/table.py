"""The measures of a set of images, by name, in the order of the table.

To add one: a function of `Context` under `@register_measure`, and a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval, bootstrap_mean, share_interval
from distill.metrics.edges import edge_share, gradient_distance_from_histograms, gradient_histogram
from distill.metrics.features import Extractor, Features
from distill.metrics.frechet import MIN_IMAGES, frechet_interval, precision_recall
from distill.metrics.frechet import kid as kid_of_features
from distill.metrics.perceptual import PerceptualDistance, class_diversity
from distill.metrics.reference import ReferenceStatistics, extractor_id
from distill.metrics.spectrum import (
    axis_power,
    band_power,
    check_images,
    has_patch_grid,
    peak_from_axis_power,
    ratio_from_band_power,
    ring_power,
    spectral_distance_from_power,
)

Ideal = Literal["lower", "higher", "as data"]
FRECHET_RESAMPLES = 50


@dataclass(frozen=True)
class Context:
    """A set of images, what it is compared with, and results that several measures share, computed once."""

    images: Tensor  # [N, C, H, W]
    labels: Tensor  # [N]
    data: ReferenceStatistics | None
    teacher: ReferenceStatistics | None
    extractor: Extractor | None
    perceptual: PerceptualDistance | None
    patch_size: int
    paired_to: Tensor | None  # [N, C, H, W]
    seed: int
    num_bootstrap: int

    @cached_property
    def extracted(self) -> Features | None:
        return self.extractor.extract(self.images) if self.extractor else None

    @cached_property
    def rings(self) -> tuple[Tensor, Tensor]:
        return ring_power(self.images)

    @cached_property
    def data_features(self) -> Tensor | None:
        """Features of the data; None if there is nothing to compare with `extracted`."""
        if self.extracted is None or self.data is None or len(self.data.features) < MIN_IMAGES:
            return None
        return torch.from_numpy(self.data.features).float()

    @cached_property
    def precision_recall(self) -> tuple[Interval | None, Interval | None]:
        if self.extracted is None or self.data_features is None:
            return None, None
        return precision_recall(self.extracted.features, self.data_features)

    def frechet(self, reference: ReferenceStatistics | None) -> Interval | None:
        if self.extracted is None or reference is None or not reference.has_features:
            return None
        return frechet_interval(
            self.extracted.features,
            reference.frechet(),
            num_resamples=min(FRECHET_RESAMPLES, self.num_bootstrap),
            seed=self.seed,
        )

    def spectral_distance(self, reference: ReferenceStatistics | None) -> Interval | None:
        if reference is None or not reference.has_images:
            return None
        frequency, power = self.rings
        target = torch.from_numpy(reference.power)
        return self.of_mean(power, lambda row: spectral_distance_from_power(frequency, row, target), minimum=0.0)

    def of_mean(self, table: Tensor, statistic: Callable[[Tensor], float], minimum: float = -float("inf")) -> Interval:
        return bootstrap_mean(table, statistic, num_resamples=self.num_bootstrap, seed=self.seed, minimum=minimum)


@dataclass(frozen=True)
class Measure:
    """One row of the table. compute returns None if the context lacks what it needs.

    ideal: "lower", "higher", or "as data", which means best if equal to the value of the data (`data_values`).
    has_interval: whether the limits stored with a value are meaningful.
    """

    name: str
    title: str
    unit: str
    ideal: Ideal
    explanation: str
    compute: Callable[[Context], Interval | None]
    has_interval: bool = True


MEASURES: dict[str, Measure] = {}


def register_measure(
    title: str, *, unit: str = "", ideal: Ideal, explanation: str, has_interval: bool = True
) -> Callable[[Callable[[Context], Interval | None]], Callable[[Context], Interval | None]]:
    """Register a function of `Context` under its own name, after the measures registered so far.

    Raises: ValueError if the name is taken.
    """

    def register(compute: Callable[[Context], Interval | None]) -> Callable[[Context], Interval | None]:
        name = compute.__name__
        if name in MEASURES:
            raise ValueError(f"there is a measure {name!r} already")
        MEASURES[name] = Measure(name, title, unit, ideal, explanation, compute, has_interval)
        return compute

    return register


@register_measure(
    "Fréchet distance to data",
    ideal="lower",
    explanation="distance between Gaussians fitted to the features of these images and of the data",
)
def frechet(context: Context) -> Interval | None:
    return context.frechet(context.data)


@register_measure(
    "Fréchet distance to teacher",
    ideal="lower",
    explanation="the same distance to the teacher's images: what distillation itself changed",
)
def frechet_teacher(context: Context) -> Interval | None:
    return context.frechet(context.teacher)


@register_measure(
    "KID x 1000",
    ideal="lower",
    explanation="kernel distance between the features of these images and of the data, unbiased at any count",
)
def kid(context: Context) -> Interval | None:
    if context.extracted is None or context.data_features is None:
        return None
    interval = kid_of_features(context.extracted.features, context.data_features)
    return Interval(1000 * interval.value, 1000 * interval.low, 1000 * interval.high)


@register_measure(
    "Precision",
    unit="share",
    ideal="higher",
    explanation="share of these images that lie among the data: how believable they are",
)
def precision(context: Context) -> Interval | None:
    return context.precision_recall[0]


@register_measure(
    "Recall",
    unit="share",
    ideal="higher",
    explanation="share of the data that lies among these images: how much of the variety is covered; falls as images "
    "are added, so that only equal numbers of them compare",
    has_interval=False,
)
def recall(context: Context) -> Interval | None:
    return context.precision_recall[1]


@register_measure(
    "Class agreement",
    unit="share",
    ideal="higher",
    explanation="share of images that a classifier takes for the class that was asked for",
)
def class_agreement(context: Context) -> Interval | None:
    logits = context.extracted.logits if context.extracted else None
    if logits is None:
        return None
    agrees = (logits.argmax(1) == context.labels).double()
    return share_interval(agrees.mean().item(), len(agrees))


@register_measure(
    "High-frequency share",
    unit="share of power",
    ideal="as data",
    explanation="share of the power above half the Nyquist frequency; less than the data: lost, more: grain",
)
def high_frequency_ratio(context: Context) -> Interval:
    return context.of_mean(band_power(context.images), ratio_from_band_power)


@register_measure(
    "Spectral distance to data",
    unit="dB",
    ideal="lower",
    explanation="RMS difference of the spectra above half the Nyquist frequency; too little, too much alike",
)
def spectral_distance_data(context: Context) -> Interval | None:
    return context.spectral_distance(context.data)


@register_measure(
    "Spectral distance to teacher",
    unit="dB",
    ideal="lower",
    explanation="the same difference from the teacher's spectrum",
)
def spectral_distance_teacher(context: Context) -> Interval | None:
    return context.spectral_distance(context.teacher)


@register_measure(
    "Patch peak",
    unit="ratio",
    ideal="as data",
    explanation="power at the patch grid's frequencies against their neighbours; 1 where there is no grid",
)
def patch_peak(context: Context) -> Interval | None:
    height, side = context.images.shape[-2:]
    if height != side or not has_patch_grid(side, context.patch_size):
        return None
    return context.of_mean(
        axis_power(context.images).flatten(1),
        lambda row: peak_from_axis_power(row.view(2, -1), side, context.patch_size),
    )


@register_measure(
    "Edge density",
    unit="share of pixels",
    ideal="as data",
    explanation="share of pixels with a Sobel gradient above an eighth of the range of values per pixel",
)
def edge_density(context: Context) -> Interval:
    return context.of_mean(edge_share(context.images)[:, None], lambda row: row.item())


@register_measure(
    "Gradient distance to data",
    unit="image units per pixel",
    ideal="lower",
    explanation="Wasserstein distance of the Sobel gradients' distributions; too flat, too steep alike",
)
def gradient_distance_data(context: Context) -> Interval | None:
    if context.data is None or not context.data.has_images:
        return None
    target = torch.from_numpy(context.data.gradient_histogram)
    return context.of_mean(
        gradient_histogram(context.images),
        lambda row: gradient_distance_from_histograms(row, target),
        minimum=0.0,
    )


@register_measure(
    "Diversity inside classes",
    unit="perceptual distance",
    ideal="as data",
    explanation="mean LPIPS (or its stand-in) of pairs of one class",
)
def lpips_diversity(context: Context) -> Interval | None:
    if context.perceptual is None:
        return None
    distances = class_diversity(context.perceptual, context.images, context.labels, seed=context.seed)
    if len(distances) < 2:
        return None
    return context.of_mean(distances.double()[:, None], lambda row: row.item())


@register_measure(
    "Distance to the teacher's image",
    unit="perceptual distance",
    ideal="lower",
    explanation="mean LPIPS (or its stand-in) to the teacher's image from the same noise and label",
)
def lpips_to_teacher(context: Context) -> Interval | None:
    if context.perceptual is None or context.paired_to is None:
        return None
    distances = context.perceptual.distance(context.images[: len(context.paired_to)], context.paired_to)
    return context.of_mean(distances.double()[:, None], lambda row: row.item())


def check_reference(reference: ReferenceStatistics, extractor: Extractor | None, image_shape: tuple[int, ...]) -> None:
    """Raise ValueError if `reference` has features of another extractor or images of another shape (C, H, W)."""
    if extractor and reference.has_features and reference.extractor != extractor_id(extractor):
        raise ValueError(
            f"the statistics of {reference.source!r} were made with the extractor {reference.extractor}, "
            f"not {extractor_id(extractor)}; make them again"
        )
    if reference.has_images and reference.image_shape != image_shape:
        raise ValueError(
            f"the statistics of {reference.source!r} are of images {list(reference.image_shape)}, "
            f"not {list(image_shape)}"
        )


def measure(
    images: Tensor,
    labels: Tensor,
    *,
    data: ReferenceStatistics | None,
    teacher: ReferenceStatistics | None = None,
    extractor: Extractor | None,
    lpips: PerceptualDistance | None = None,
    patch_size: int,
    paired_to: Tensor | None = None,
    seed: int = 0,
    num_bootstrap: int = 200,
) -> dict[str, Interval]:
    """Compute every measure in `MEASURES` that the arguments allow, in that order; 95 % intervals over the images.

    Args:
        images: generated images [N, C, H, W] in [-1, 1].
        labels: the classes that the images were generated for, [N].
        data, teacher: statistics to compare with; their number of images may differ from N. None leaves out the
            measures that compare with it.
        extractor: the extractor that `data` and `teacher` were made with; None leaves out the measures of features.
        lpips: perceptual distance; None leaves out its two measures.
        patch_size: patch size of the model that made the images; the patch peak is left out if it makes no grid.
        paired_to: the teacher's images from the noise and labels of the first M <= N of `images`.
        num_bootstrap: resamples (at most 50 for Fréchet); 0 leaves the limits nan, except for KID and
            shares.

    Raises: ValueError if there are fewer than 4 images, shapes do not match, or a reference was made with
        another extractor or image size.
    """
    check_images(images, MIN_IMAGES)
    images, labels = images.detach().cpu().float(), labels.detach().cpu()
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels {list(labels.shape)} do not belong to images {list(images.shape)}")
    if paired_to is not None and (paired_to.shape[1:] != images.shape[1:] or len(paired_to) > len(images)):
        raise ValueError(f"paired_to has shape {list(paired_to.shape)}, images {list(images.shape)}")
    for reference in (data, teacher):
        if reference is not None:
            check_reference(reference, extractor, tuple(images.shape[1:]))
    context = Context(
        images=images,
        labels=labels,
        data=data,
        teacher=teacher,
        extractor=extractor,
        perceptual=lpips,
        patch_size=patch_size,
        paired_to=paired_to.detach().cpu().float() if paired_to is not None else None,
        seed=seed,
        num_bootstrap=num_bootstrap,
    )
    computed = {name: entry.compute(context) for name, entry in MEASURES.items()}
    return {name: interval for name, interval in computed.items() if interval is not None}


def data_values(reference: ReferenceStatistics, patch_size: int) -> dict[str, float]:
    """Values of the reference images, for the measures that are best "as data" and for class agreement.

    Left out are class agreement without logits, diversity without a perceptual distance, and the patch peak if images
    are not square or `patch_size` makes no grid.
    """
    if not reference.has_images:
        return {}
    mean_band_power = torch.from_numpy(reference.band_power).double().mean(0)
    values = {
        "class_agreement": reference.class_agreement,
        "high_frequency_ratio": ratio_from_band_power(mean_band_power),
        "edge_density": float(reference.edge_share.mean(dtype="float64")),
        "lpips_diversity": reference.diversity,
    }
    side = reference.image_shape[-1]
    if reference.axis_power.size and has_patch_grid(side, patch_size):
        values["patch_peak"] = peak_from_axis_power(torch.from_numpy(reference.axis_power), side, patch_size)
    return {name: values[name] for name in MEASURES if name in values and values[name] == values[name]}
