"""What images are compared with: statistics of a data set, of a file, or of the shipped data; or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill.assets import EMBEDDED, asset, resolve
from distill.config import DataConfig, EvalConfig
from distill.data import Dataset
from distill.data.base import noise_of
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.latents.decoding import Decoder
from distill.metrics import EXTRACTORS, Extractor, PerceptualDistance, ReferenceStatistics, reference_from_images
from distill.metrics.published import is_published, published_reference
from distill.progress import progress_bar
from distill.render import frame_shape
from distill.seeds import generator_for

MAX_REFERENCE = 10_000  # images of a data set
MAX_BYTES = 2**32  # of them in float32, while they are measured
BATCH = 250


def reference_file(config: EvalConfig, teacher_path: str | None) -> Path | None:
    """The file of statistics of the data; None if the statistics are made of `config.data`, or there are none.

    The shipped statistics are used for the shipped teacher and its students, or if they are asked for.
    """
    if config.data is not None or config.reference is None:
        return None
    if config.reference == "auto":
        return asset("data.npz") if teacher_path == EMBEDDED else None
    return resolve(config.reference, "data.npz")


def extractor_name(config: EvalConfig, file: Path | None) -> str:
    """The extractor of the configuration; for `auto` the one that the statistics were made with, else Inception."""
    if config.extractor != "auto":
        return config.extractor
    if file is None or is_published(file):
        return "inception"
    name = ReferenceStatistics.load(file).extractor.split("-")[0]
    return name if name in EXTRACTORS else "inception"


def load_reference(
    file: Path, extractor: Extractor | None, perceptual: PerceptualDistance | None
) -> ReferenceStatistics:
    """The statistics in a file, of `statistics` or published ones. Raises: ValueError, which names what is wrong."""
    if is_published(file):
        return published_reference(file, extractor, perceptual)
    return ReferenceStatistics.load(file)


def data_set_of(config: DataConfig, decoder: Decoder, sample_shape: tuple[int, ...]) -> Dataset:
    """The data set to compare a model's images with.

    Args:
        sample_shape: (c, h, w) or (c, f, h, w) of the model's samples; data of this shape are decoded like them.

    Raises: as the loaders of data sets; UserError if its samples are neither such samples nor images of that size (of
        videos of the size of a frame).
    """
    data = configured_dataset(replace(config, flip=False))
    shape, images = tuple(data.sample_shape), decoder.image_shape(sample_shape)
    if shape not in (tuple(sample_shape), images, frame_shape(images)):
        raise UserError(f"{config.path} has images {list(shape)}; those to be measured are {list(images)}")
    return data


def statistics_of(
    data: Dataset,
    source: str,
    decoder: Decoder,
    sample_shape: tuple[int, ...],
    extractor: Extractor | None,
    perceptual: PerceptualDistance | None,
    *,
    num_images: int = MAX_REFERENCE,
) -> ReferenceStatistics:
    """Statistics of at most `num_images` of a data set, no more of one class than of another if they have them.

    Args:
        source: name of the data, to show to users.
        sample_shape: (c, h, w) of a model's samples; data of this shape are decoded like them.
    """
    shape, decode = tuple(data.sample_shape), None
    if shape == tuple(sample_shape):
        shape, decode = decoder.image_shape(shape), decoder.decode
    num_images = min(num_images, MAX_BYTES // (4 * torch.Size(shape).numel()))
    images, labels = read_images(data, class_balanced(data.labels, num_images, seed=0), decode)
    named = f"{source}, {len(images)} images"
    return reference_from_images(images, labels, extractor, named, perceptual=perceptual)


def read_images(
    data: Dataset, chosen: Tensor, decode: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) of the indices `chosen` (N), decoded if they are latents, and their groups (N)."""
    noise = noise_of(generator_for(0, "statistics"))
    images, labels = [], []
    with progress_bar() as progress:
        bar = progress.add_task("reading data", total=len(chosen))
        for indices in chosen.split(BATCH):
            batch, y = data.batch(indices, noise)
            images.append(decode(batch).cpu() if decode else batch)
            labels.append(data.condition.groups(y))
            progress.advance(bar, len(indices))
    return torch.cat(images), torch.cat(labels)


def class_balanced(labels: Tensor, num_images: int, seed: int) -> Tensor:
    """Indices of at most num_images // K images of each of K classes, at random; at least one of each."""
    order = torch.randperm(len(labels), generator=generator_for(seed, "statistics"))
    classes = labels.unique().tolist()
    each = max(1, num_images // len(classes))
    return torch.cat([order[labels[order] == label][:each] for label in classes])
