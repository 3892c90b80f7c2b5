"""Images for a diagnosis: the same number per class, from a data set or, if there is none, drawn by a model.

Images with captions are taken as they come: seldom has a prompt several.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, Prompts, num_rows, repeat_rows
from distill.config import DataConfig
from distill.data import Dataset
from distill.data.base import noise_of
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.sampling import Sampler, draw_images
from distill.seeds import generator_for

DEFAULT_DATA = "idx:/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
MAX_CLASSES = 10  # lets a few hundred images suffice for a model of a thousand classes
MIN_PER_CLASS = 2
MIN_IMAGES = 4  # the probe splits them
READ_AT_ONCE = 500


@dataclass(frozen=True)
class DataSource:
    """A data set that fits the models, and its name."""

    dataset: Dataset
    name: str


def balanced_examples(num_images: int, condition: Condition) -> ConditionBatch:
    """The largest n <= num_images conditions with equally many of each of at most 10 conditions.

    Raises: UserError if that is less than two of each, or if num_images is below 4.
    """
    examples = condition.examples(MAX_CLASSES)
    num_examples = num_rows(examples)
    least = max(MIN_PER_CLASS * num_examples, MIN_IMAGES)
    if num_images < least:
        kind = "prompts" if isinstance(condition, Prompts) else "classes"
        raise UserError(f"--num-images must be at least {least}, for {num_examples} {kind}; got {num_images}")
    return repeat_rows(examples, num_images // num_examples)


def find_data(spec: str | None, shape: tuple[int, ...], condition: Condition) -> DataSource | None:
    """The data set NAME:PATH; without `spec`, the default one if it exists and fits, otherwise None.

    Samples are held out if the data has a test split. For a model of prompts they have captions.

    Raises: UserError if the data set in `spec` does not fit, or `spec` is not NAME:PATH; ValueError and
        FileNotFoundError as `load_dataset`.
    """
    if spec is None:
        try:
            found = _load(DEFAULT_DATA)
        except FileNotFoundError:
            return None
        fits = found.dataset.sample_shape == shape and found.dataset.condition == condition
        return found if fits else None
    found = _load(spec, str(condition.folder) if isinstance(condition, Prompts) else None)
    if found.dataset.sample_shape != shape:
        raise UserError(f"--data {spec} has samples {found.dataset.sample_shape}; the models make {shape}")
    if found.dataset.condition != condition:
        raise UserError(f"--data {spec} has {found.dataset.condition}; the models know {condition}")
    return found


def _load(spec: str, prompts: str | None = None) -> DataSource:
    name, separator, path = spec.partition(":")
    if not separator or not path:
        raise UserError(f"--data must be NAME:PATH, such as {DEFAULT_DATA}; got {spec!r}")
    config = DataConfig(name, path, prompts=prompts)
    try:
        return DataSource(configured_dataset(config, "test"), f"{spec}, split test")
    except FileNotFoundError:
        if not Path(path).expanduser().exists():
            raise
        return DataSource(configured_dataset(config, "train"), f"{spec}, split train")


def dataset_images(source: DataSource, y: ConditionBatch, seed: int) -> Tensor:
    """Samples (N, *sample_shape), drawn at random by seed without repetition, with the conditions of `y` row by row.

    Raises: UserError if the data has too few samples of a class.
    """
    groups = source.dataset.condition.groups
    labels = groups(y)
    wanted = {int(label): [] for label in labels.unique()}
    per_class = len(labels) // len(wanted)
    order = torch.randperm(len(source.dataset), generator=generator_for(seed, "diagnosis", "order"))
    for indices in order.split(READ_AT_ONCE):
        x, y = source.dataset.batch(indices, noise_of(generator_for(seed, "diagnosis", "read", int(indices[0]))))
        for label, found in wanted.items():
            found += x[groups(y) == label][: per_class - len(found)].unbind()
        if all(len(found) == per_class for found in wanted.values()):
            break
    for label, found in wanted.items():
        if len(found) < per_class:
            raise UserError(f"{source.name}: class {label} has {len(found)} samples; {per_class} are needed")
    taken = {label: iter(found) for label, found in wanted.items()}
    return torch.stack([next(taken[int(label)]) for label in labels])


def captioned_images(source: DataSource, num_images: int, seed: int) -> tuple[Tensor, ConditionBatch]:
    """Samples (N, *sample_shape), drawn at random by seed without repetition, and the prompt of each.

    Raises: UserError for fewer than 4 images, or more than there are.
    """
    if not MIN_IMAGES <= num_images <= len(source.dataset):
        limits = f"{MIN_IMAGES} and {len(source.dataset)}, the samples of {source.name}"
        raise UserError(f"--num-images must be between {limits}; got {num_images}")
    order = torch.randperm(len(source.dataset), generator=generator_for(seed, "diagnosis", "order"))
    return source.dataset.batch(order[:num_images], noise_of(generator_for(seed, "diagnosis", "read")))


def sampled_images(
    sampler: Sampler, y: ConditionBatch, seed: int, batch_size: int, advance: Callable[[int], object]
) -> Tensor:
    """Stand-in for data: samples (N, *sample_shape) that a model draws itself."""
    images, _ = draw_images(sampler, y, seed=seed, batch_size=batch_size, advance=advance)
    return images
