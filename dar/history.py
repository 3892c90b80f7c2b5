"""Who reads what: the chunk plan as an enumeration, and the history of sublayer outputs of one pass.

Sublayers are numbered 1..L; v_0 is the patch embedding and v_i the output of sublayer i. Depth is cut
into chunks of S sublayers. A sublayer of chunk n reads the summaries c_0..c_{n-1} (c_0 = v_0) and the raw
outputs of its own chunk so far; the head reads c_0..c_{N-1} and the raw outputs of the last chunk
(arXiv:2605.20708 eq. 7). S = 1 is dense: every sublayer reads every earlier output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dar.route import inverse_rms


class SourceId(NamedTuple):
    """`("chunk", n)` is the summary c_n, `("raw", i)` the output v_i of sublayer i."""

    kind: str
    index: int


@dataclass(frozen=True)
class ChunkPlan:
    """The sources of every reader of a stack of `num_sublayers`, cut into chunks of `chunk_size`."""

    num_sublayers: int
    chunk_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.chunk_size <= self.num_sublayers:
            raise ValueError(
                f"chunk_size must lie in [1, {self.num_sublayers}], the number of sublayers; got {self.chunk_size}"
            )

    def chunk_of(self, sublayer: int) -> int:
        """The chunk, from 1, that sublayer 1..L lies in."""
        return (sublayer - 1) // self.chunk_size + 1

    def end_of_chunk(self, sublayer: int) -> int:
        """The last sublayer of the chunk that `sublayer` lies in."""
        return min(self.chunk_of(sublayer) * self.chunk_size, self.num_sublayers)

    def sources_of(self, sublayer: int) -> list[SourceId]:
        """What sublayer 1..L reads; L + 1 stands for the final aggregator in front of the head."""
        is_final = sublayer == self.num_sublayers + 1
        chunk = self.chunk_of(self.num_sublayers if is_final else sublayer)
        first_raw = (chunk - 1) * self.chunk_size + 1
        return [SourceId("chunk", n) for n in range(chunk)] + [SourceId("raw", i) for i in range(first_raw, sublayer)]


def _last(outputs: Sequence[Tensor]) -> Tensor:
    return outputs[-1]


def _sum(outputs: Sequence[Tensor]) -> Tensor:
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total


def _mean(outputs: Sequence[Tensor]) -> Tensor:
    return _sum(outputs) / len(outputs)


SUMMARIES: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {"last": _last, "sum": _sum, "mean": _mean}


@dataclass
class Source:
    """One tensor (B, T, d) that later readers mix.

    readers: who will read it, sublayers first..last as a range; sublayer L + 1 is the final aggregator.
    logits: (B, T) per reader, filled at the first read where the queries are known by then.
    """

    value: Tensor
    readers: range
    inv_rms: Tensor
    logits: Sequence[Tensor] | None = None


class SourceHistory:
    """The sources of one forward pass: a list of tensors, handed out as they are, never stacked."""

    def __init__(self, plan: ChunkPlan, summary: str, embedding: Tensor) -> None:
        self._plan = plan
        self._summarise = SUMMARIES[summary]
        self._end = plan.num_sublayers + 2  # one past the final aggregator
        self._summaries = [Source(embedding, range(1, self._end), inverse_rms(embedding))]
        self._raw: list[Source] = []
        self._written = 0
        self.previous = embedding

    def append(self, output: Tensor) -> None:
        """Take the next sublayer's output; a full chunk is replaced by its summary, save for the last."""
        self._written += 1
        self.previous = output
        next_reader = self._written + 1
        end_of_chunk = self._plan.end_of_chunk(self._written)
        in_last_chunk = end_of_chunk == self._plan.num_sublayers
        if in_last_chunk or self._written < end_of_chunk:
            readers = range(next_reader, self._end if in_last_chunk else end_of_chunk + 1)
            self._raw.append(Source(output, readers, inverse_rms(output)))
            return
        summary = self._summarise([source.value for source in self._raw] + [output])
        self._summaries.append(Source(summary, range(next_reader, self._end), inverse_rms(summary)))
        self._raw = []

    def sources(self) -> list[Source]:
        """What the next reader mixes, in the order of `ChunkPlan.sources_of`."""
        return self._summaries + self._raw
