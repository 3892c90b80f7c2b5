"""The whole table of a set of images: every measure of the files that are imported here."""

from __future__ import annotations

from torch import Tensor

from distill.metrics import colour, edges, flicker, grain, grid, paired, sets, spectrum  # noqa: F401
from distill.metrics.bootstrap import Interval
from distill.metrics.features import Extractor
from distill.metrics.frechet import MIN_IMAGES
from distill.metrics.images import check_samples
from distill.metrics.perceptual import PerceptualDistance
from distill.metrics.reference import ReferenceStatistics, extractor_id
from distill.metrics.registry import MEASURES, Context
from distill.render import frame_shape


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
    paired_to: Tensor | None = None,
    seed: int = 0,
    num_bootstrap: int = 200,
) -> dict[str, Interval]:
    """Compute every measure in `MEASURES` that the arguments allow, in that order; 95 % intervals over the images.

    Args:
        images: generated images [N, C, H, W], or videos [N, C, F, H, W], in [-1, 1].
        labels: the classes that the images were generated for, [N].
        data, teacher: statistics to compare with; their number of images may differ from N. None leaves out the
            measures that compare with it.
        extractor: the extractor that `data` and `teacher` were made with; None leaves out the measures of features.
        lpips: perceptual distance; None leaves out its measures.
        paired_to: the teacher's images from the noise and labels of the first M <= N of `images`.
        num_bootstrap: resamples (at most 50 for Fréchet); 0 leaves the limits nan, except for KID and
            shares.

    Raises: ValueError if there are fewer than 4 images, shapes do not match, or a reference was made with
        another extractor or image size.
    """
    check_samples(images, MIN_IMAGES)
    images, labels = images.detach().cpu().float(), labels.detach().cpu()
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels {list(labels.shape)} do not belong to images {list(images.shape)}")
    if paired_to is not None and (paired_to.shape[1:] != images.shape[1:] or len(paired_to) > len(images)):
        raise ValueError(f"paired_to has shape {list(paired_to.shape)}, images {list(images.shape)}")
    for reference in (data, teacher):
        if reference is not None:
            check_reference(reference, extractor, frame_shape(images.shape[1:]))
    context = Context(
        images=images,
        labels=labels,
        data=data,
        teacher=teacher,
        extractor=extractor,
        perceptual=lpips,
        paired_to=paired_to.detach().cpu().float() if paired_to is not None else None,
        seed=seed,
        num_bootstrap=num_bootstrap,
    )
    computed = {name: entry.compute(context) for name, entry in MEASURES.items()}
    return {name: interval for name, interval in computed.items() if interval is not None}
