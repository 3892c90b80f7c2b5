"""Text prompts of a list, as embeddings that were computed before and lie in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from distill.conditions.batches import ConditionBatch
from distill.conditions.class_labels import MAX_EXAMPLES
from distill.conditions.prompt_files import (
    INDEX,
    NULL,
    PromptIndex,
    check_content,
    check_files,
    prompt_file,
    read_index,
    read_prompt,
    shortened,
)
from distill.errors import UserError
from distill.files import read_json, write_text

REFERENCE_FILE = "prompts_from.json"  # of a model's folder: where its prompts are


@dataclass(frozen=True, repr=False)
class Prompts:
    """The condition of a text-conditional model; batches are dictionaries of tensors, one row a prompt.

    What is in them is what the folder holds by name, in the dtype on disk: embeddings (B, L, D), masks (B, L), pooled
    vectors (B, P); and `index` (B) in int64, the number of each prompt, -1 for the null prompt. L is always that of the
    longest prompt of the folder; shorter ones are padded with zeros, which their masks say.

    Files are read when their rows are asked for, and checked when they are read first. Prompts are equal where their
    texts and embeddings are.
    """

    folder: Path = field(compare=False)
    index: PromptIndex = field(compare=False)
    digest: str
    _sound: set[int] = field(default_factory=set, compare=False)
    _null_on: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, folder: str | Path) -> Prompts:
        """The prompts in a folder that `scripts/encode_prompts.py` or `prompt_files` wrote.

        Raises: UserError, which names file and field, where one is missing, damaged or unlike the others.
        """
        path = Path(folder).expanduser()
        index = read_index(path)
        check_files(path, index)
        return cls(path, index, index.digest())

    def __deepcopy__(self, memo: dict[int, object]) -> Prompts:
        return self  # nothing of it changes: all copies of a model share it

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.index.prompts

    @property
    def num_distinct(self) -> int:
        return len(self.prompts)

    @property
    def tensors(self) -> str:
        """What a model is told of each, for people: `encoder_hidden_states (L, 64) in BF16`, .."""
        kinds = self.index.tensors.items()
        return ", ".join(f"{name} ({', '.join(map(str, kind.shape))}) in {kind.dtype}" for name, kind in kinds)

    def rows(self, numbers: Tensor) -> dict[str, Tensor]:
        """The prompts of `numbers` (B), one row each. Raises: UserError where a file is damaged."""
        told = {number: self._read(number) for number in set(numbers.tolist())}  # in memory mapped, and not yet read
        batch = {name: self._stacked(name, [told[number][name] for number in numbers.tolist()])
                 for name in self.index.tensors}  # fmt: skip
        return {**batch, INDEX: numbers}

    def _stacked(self, name: str, tensors: list[Tensor]) -> Tensor:
        """The tensors of one name as (B, ..), padded to the longest of the folder."""
        if not self.index.tensors[name].has_length:
            return torch.stack(tensors)
        batch = tensors[0].new_zeros(len(tensors), self.index.length, *tensors[0].shape[1:])
        for row, tensor in zip(batch, tensors, strict=True):
            row[: len(tensor)] = tensor
        return batch

    def check(self, number: int) -> None:
        """Read one prompt and see that it is of use. Raises: UserError, which names its file."""
        if number not in self._sound:
            check_content(prompt_file(self.folder, number), self.index)
            self._sound.add(number)

    def _read(self, number: int) -> dict[str, Tensor]:
        self.check(number)
        return read_prompt(prompt_file(self.folder, number))

    def random(self, num: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.rows(torch.randint(self.num_distinct, (num,), generator=generator))

    def balanced(self, num: int) -> dict[str, Tensor]:
        """All prompts in turn, again and again."""
        return self.rows(torch.arange(num) % self.num_distinct)

    def examples(self, most: int = MAX_EXAMPLES) -> dict[str, Tensor]:
        """All prompts, or `most` of them, evenly spaced."""
        return self.rows(torch.linspace(0, self.num_distinct - 1, min(self.num_distinct, most)).round().long())

    def null(self, y: ConditionBatch) -> dict[str, Tensor]:
        numbers = torch.full_like(y[INDEX], NULL)
        if numbers.device not in self._null_on:  # once: a copy from the host would be in the way of a CUDA graph
            one = self.rows(torch.tensor([NULL]))
            self._null_on[numbers.device] = {name: tensor.to(numbers.device) for name, tensor in one.items()}
        null = self._null_on[numbers.device]
        return {
            **{name: tensor.expand(len(numbers), *tensor.shape[1:]) for name, tensor in null.items()},
            INDEX: numbers,
        }

    def includes(self, other: object) -> bool:
        """Whether `other` has the same tensors, of the same width and length: a model reads embeddings, not a list."""
        return (
            isinstance(other, Prompts)
            and other.index.tensors == self.index.tensors
            and other.index.length == self.index.length
        )

    def select(self, names: list[str]) -> dict[str, Tensor]:
        """Prompts by their text or, where none reads so, by their number from 0."""
        return self.rows(torch.tensor([self._number(name) for name in names], dtype=torch.int64))

    def _number(self, name: str) -> int:
        if name in self.prompts:
            return self.prompts.index(name)
        if name.isdecimal() and int(name) < self.num_distinct:
            return int(name)
        few = ", ".join(repr(shortened(text, 30)) for text in self.prompts[:3]) + ", .." * (self.num_distinct > 3)
        raise UserError(f"prompt {shortened(name)!r} is not known; there are {self.num_distinct}, from 0 on: {few}")

    def names(self, y: ConditionBatch) -> list[str]:
        """The whole text of each."""
        return [self.index.null if number == NULL else self.prompts[number] for number in y[INDEX].tolist()]

    def groups(self, y: ConditionBatch) -> Tensor:
        return y[INDEX]

    def group_names(self) -> list[str]:
        """The prompts, each on one line of 60 characters at most."""
        return [shortened(text) for text in self.prompts]

    def save(self, model_folder: Path) -> None:
        """Write into a model's folder where its prompts are and what they were; they are not copied."""
        reference = {"folder": str(self.folder.resolve()), "digest": self.digest}
        write_text(model_folder / REFERENCE_FILE, json.dumps(reference, indent=2) + "\n")

    @classmethod
    def of_model_folder(cls, model_folder: str | Path) -> Prompts:
        """The prompts that `save` wrote of. Raises: UserError where they are no longer there, or are others."""
        file = Path(model_folder).expanduser() / REFERENCE_FILE
        if not file.is_file():
            raise UserError(f"{file.parent} names no prompts (no {REFERENCE_FILE}); --prompts FOLDER does")
        reference = read_json(file)
        if not all(isinstance(reference.get(name), str) for name in ("folder", "digest")):
            raise UserError(f"{file} is damaged: it must hold folder and digest; --prompts FOLDER names others")
        folder = Path(reference["folder"])
        try:
            prompts = cls.load(folder)
        except UserError as error:
            raise UserError(
                f"{file} names prompts that are not to be had: {error}; --prompts FOLDER names others"
            ) from error
        if prompts.digest != reference["digest"]:
            raise UserError(f"{folder} has changed since {file} was written; --prompts {folder} takes it as it is")
        return prompts

    def __str__(self) -> str:
        return f"{self.num_distinct} prompts" if self.num_distinct != 1 else "1 prompt"

    __repr__ = __str__
