"""Samples with prompts in the place of classes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, Prompts
from distill.conditions.prompt_files import shortened
from distill.data.base import Dataset, Noise
from distill.errors import UserError, reading

CAPTIONS_FILE = "captions.json"


class Captioned:
    """The samples of a data set, each with one of `prompts` as its condition; `labels` are the prompts' numbers.

    Which one says `captions.json` in the folder of the data: a list of texts, one a sample, in their order. Without
    that file the data's own labels are the numbers of the prompts.

    Raises: UserError where the file is damaged, or a text or a number is not among the prompts.
    """

    def __init__(self, data: Dataset, prompts: Prompts, folder: Path) -> None:
        self._data, self.condition = data, prompts
        self.sample_shape = data.sample_shape
        if hasattr(data, "space"):
            self.space = data.space  # pyright: ignore[reportAttributeAccessIssue]
        file = folder / CAPTIONS_FILE
        self.labels = _numbers(file, len(data), prompts) if file.is_file() else data.labels
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < prompts.num_distinct:
            raise UserError(
                f"{folder} has labels up to {int(self.labels.max())} and no {CAPTIONS_FILE}; data.prompts = "
                f"{prompts.folder} has {prompts}, from 0 on"
            )

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, ConditionBatch]:
        samples, _ = self._data.batch(indices, noise)
        return samples, self.condition.rows(self.labels[indices])


def _numbers(file: Path, num_samples: int, prompts: Prompts) -> Tensor:
    with reading(file):
        captions = json.loads(file.read_bytes())
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise UserError(f"{file} must be a list of texts, one a sample")
    if len(captions) != num_samples:
        raise UserError(f"{file} has {len(captions)} captions; there are {num_samples} samples")
    numbers = {text.strip(): number for number, text in enumerate(prompts.prompts)}
    unknown = next((text for text in captions if text.strip() not in numbers), None)
    if unknown is not None:
        raise UserError(f"{file}: {shortened(unknown)!r} is not among the {prompts} of data.prompts = {prompts.folder}")
    return torch.tensor([numbers[text.strip()] for text in captions])
