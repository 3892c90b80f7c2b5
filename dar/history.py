"""The sources of one forward pass, handed out as they are: lists of tensors, never a stack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dar.chunks import ChunkPlan
from dar.route import inverse_rms


def _last(outputs: Sequence[Tensor]) -> Tensor:
    return outputs[-1]


def _sum(outputs: Sequence[Tensor]) -> Tensor:
    if len(outputs) == 1:
        return outputs[0]
    total = outputs[0] + outputs[1]
    for output in outputs[2:]:
        total.add_(output)  # in place: a sum's gradient asks for no term, and a fresh tensor costs more than the sum
    return total


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    return _sum(outputs) / len(outputs)


SUMMARIES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"last": _last, "sum": _sum, "mean": _mean}


@dataclass
class Source:
    """One tensor (B, T, d) that later readers mix.

    readers: who will read it, sublayers first..last as a range; sublayer L + 1 is the final aggregator.
    entry: its place on a tape (`dar.trunk`), where there is one.
    """

    value: Tensor
    readers: range
    entry: Any = None
    _inv_rms: Tensor | None = None

    @property
    def inv_rms(self) -> Tensor:
        """1 / RMS, (B, T): computed once, and only if a reader asks, which one with fixed weights does not."""
        if self._inv_rms is None:
            self._inv_rms = inverse_rms(self.value)
        return self._inv_rms


class SourceHistory:
    """Summaries of finished chunks and the raw outputs of the chunk at hand, by `ChunkPlan`."""

    def __init__(self, plan: ChunkPlan, summary: str, embedding: Tensor) -> None:
        self._plan = plan
        self._summarise = SUMMARIES[summary]
        self._num_sublayers = plan.num_sublayers
        self._end = plan.num_sublayers + 2  # one past the final aggregator
        self._finished = [self._source(embedding, 1, self._end)]
        self._own_chunk: list[Source] = []
        self._written = 0
        self.previous = embedding

    def append(self, output: Tensor) -> None:
        """Take the next sublayer's output; a full chunk is replaced by its summary, save for the last."""
        self._written += 1
        self.previous = output
        end_of_chunk = self._plan.end_of_chunk(self._written)
        if end_of_chunk == self._num_sublayers:
            self._add(output, self._end)
        elif self._written < end_of_chunk:
            self._add(output, end_of_chunk + 1)
        else:
            self._finish(output)

    def copy(self) -> SourceHistory:
        """The history as it is now, which goes on by itself; its sources are the same."""
        twin = copy.copy(self)
        twin._finished, twin._own_chunk = list(self._finished), list(self._own_chunk)
        return twin

    def sources(self) -> list[Source]:
        """What the next reader mixes, in the order of the plan's `sources_of`."""
        return self._finished + self._own_chunk

    def _add(self, output: Tensor, end: int) -> None:
        """Keep the output of an unfinished chunk for the readers before `end`."""
        self._own_chunk.append(self._source(output, self._written + 1, end))

    def _finish(self, output: Tensor) -> None:
        summary = self._summarise([source.value for source in self._own_chunk] + [output])
        self._finished.append(self._source(summary, self._written + 1, self._end))
        self._own_chunk = []

    @staticmethod
    def _source(value: Tensor, first_reader: int, end: int) -> Source:
        return Source(value, range(first_reader, end))


class PartialSumHistory(SourceHistory):
    """Sums of finished chunks and the sum so far of the chunk at hand, by `PartialSumPlan`."""

    def __init__(self, plan: ChunkPlan, embedding: Tensor) -> None:
        super().__init__(plan, "sum", embedding)

    def _add(self, output: Tensor, end: int) -> None:
        so_far = [source.value for source in self._own_chunk]
        # The next reader is the last to see this sum: the one after it reads a longer one.
        self._own_chunk = [self._source(_sum([*so_far, output]), self._written + 1, self._written + 2)]
