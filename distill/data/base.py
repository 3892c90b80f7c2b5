"""The interface of a data set, and the registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch
from distill.seeds import generator_for

Noise = Callable[[torch.Size], Tensor]
"""Standard normal values of a shape (B, ...), one row per requested sample."""


def noise_of(generator: torch.Generator) -> Noise:
    """Noise from `generator`; each call draws new values."""
    return lambda shape: torch.randn(shape, generator=generator)


class Dataset(Protocol):
    """Labelled samples, addressed by index, so that any order can be drawn and resumed.

    sample_shape: shape of one sample, (C, H, W).
    condition: the condition of its batches.
    labels: labels of all samples, (N) in int64, known without reading the samples.
    """

    sample_shape: tuple[int, ...]
    labels: Tensor

    @property
    def condition(self) -> Condition: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, ConditionBatch]:
        """Samples (B, *sample_shape) in float32, images in [-1, 1], and their conditions, B rows.

        noise: source of random values that a sample needs at each access, such as a latent's posterior noise; called
            once or not at all.
        """
        ...


Loader = Callable[..., Dataset]
"""loader(path, split) -> Dataset; one that resizes has a parameter `size`, too."""
DATASETS: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Make `loader(path, split)` selectable as `data.name`."""

    def add(loader: Loader) -> Loader:
        if name in DATASETS:
            raise ValueError(f"data set {name!r} is registered already")
        DATASETS[name] = loader
        return loader

    return add


def load_dataset(name: str, path: str | Path, split: str = "train", size: int | None = None) -> Dataset:
    """Load a data set by name.

    Args:
        size: resize and crop images to size x size; for data sets of image files. None takes them as they are.

    Raises: ValueError for an unknown name, an empty set, or a size that the data set does not take; FileNotFoundError
        for a missing path.
    """
    if name not in DATASETS:
        raise ValueError(f"data.name must be one of {', '.join(sorted(DATASETS))}; got {name!r}")
    load = DATASETS[name]
    if size is not None and "size" not in signature(load).parameters:
        resizing = [name for name, other in sorted(DATASETS.items()) if "size" in signature(other).parameters]
        raise ValueError(f"data.size is for data.name = {' or '.join(resizing)}; {name} is read as it is")
    dataset = load(Path(path).expanduser(), split, **({} if size is None else {"size": size}))
    if len(dataset) == 0:
        raise ValueError(f"data.path = {path} holds no samples")
    return dataset


def check_batch_size(num_samples: int, batch_size: int) -> None:
    """Raise ValueError if one batch would need a sample twice."""
    if batch_size > num_samples:
        raise ValueError(f"train.batch_size = {batch_size} is larger than the data set ({num_samples} samples)")


def shuffled_indices(num_samples: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Indices of batch `step`, where each epoch visits the set in a new order; batches may span epochs.

    The result depends only on the arguments, so steps can be computed in any order.
    """
    check_batch_size(num_samples, batch_size)
    first, last = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(first // num_samples, (last - 1) // num_samples + 1):
        start = epoch * num_samples
        parts.append(_order(num_samples, seed, epoch)[max(first - start, 0) : last - start])
    return torch.cat(parts)


@lru_cache(maxsize=2)  # a batch spans two epochs at most, and an order of a million samples takes time
def _order(num_samples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_samples, generator=generator_for(seed, "epoch", epoch))
