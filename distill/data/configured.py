"""A data set as a section `data` describes it: loaded, with prompts, mirrored."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, Prompts
from distill.config import DataConfig
from distill.data.base import Dataset, Noise, load_dataset
from distill.data.captions import Captioned
from distill.errors import UserError


def configured_dataset(config: DataConfig, split: str = "train") -> Dataset:
    """The data set of a section `data`. Raises: as `load_dataset`, `Prompts.load` and `Captioned`."""
    dataset = load_dataset(config.name, config.path, split, config.size)
    if config.prompts is not None:
        dataset = Captioned(dataset, Prompts.load(config.prompts), Path(config.path).expanduser())
    return Flipped(dataset) if config.flip and split == "train" else dataset


class Flipped:
    """A data set whose images are mirrored at random, left to right, with probability 1/2 at each access."""

    def __init__(self, data: Dataset) -> None:
        if hasattr(data, "space"):
            raise UserError("data.flip is for images; latents are flipped before they are cached")
        self._data = data
        self.sample_shape, self.labels = data.sample_shape, data.labels

    @property
    def condition(self) -> Condition:
        return self._data.condition

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, ConditionBatch]:
        images, y = self._data.batch(indices, noise)
        mirrored = noise(torch.Size([len(images)])) > 0
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images), y
