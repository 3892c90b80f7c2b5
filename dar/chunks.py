"""Who reads what: depth cut into chunks, as an enumeration.

Sublayers are numbered 1..L; v_0 is the patch embedding and v_i the output of sublayer i. A sublayer of
chunk n reads the summaries c_0..c_{n-1} of the chunks before it (c_0 = v_0) and the raw outputs of its own
chunk so far; the head reads c_0..c_{N-1} and the raw outputs of the last chunk (arXiv:2605.20708 eq. 7).
Chunks of one sublayer are dense routing: every sublayer reads every earlier output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

ChunkSize = int | str | tuple[int, ...]


class SourceId(NamedTuple):
    """What a reader mixes.

    ("chunk", n) is the summary c_n, ("raw", i) the output v_i of sublayer i, ("partial", i) the sum of the
    outputs of i's own chunk up to i.
    """

    kind: str
    index: int


@dataclass(frozen=True)
class ChunkPlan:
    """The sources of every reader of a stack of sublayers cut into chunks of the given lengths."""

    lengths: tuple[int, ...]

    @classmethod
    def of(cls, num_sublayers: int, chunk_size: ChunkSize) -> ChunkPlan:
        """A plan from `RoutingConfig.chunk_size`: S (the last chunk may be shorter), a list of lengths, "auto".

        Raises: ValueError where the chunks do not make up the depth.
        """
        if chunk_size == "auto":
            chunk_size = chunk_size_rule(num_sublayers)
        if isinstance(chunk_size, int):
            if not 1 <= chunk_size <= num_sublayers:
                raise ValueError(
                    f"chunk_size must lie in [1, {num_sublayers}], the number of sublayers; got {chunk_size}"
                )
            whole, rest = divmod(num_sublayers, chunk_size)
            return cls((chunk_size,) * whole + (rest,) * bool(rest))
        assert isinstance(chunk_size, tuple)
        if sum(chunk_size) != num_sublayers:
            raise ValueError(
                f"chunk_size as a list must add up to {num_sublayers}, the number of sublayers; "
                f"{list(chunk_size)} adds up to {sum(chunk_size)}"
            )
        return cls(chunk_size)

    @property
    def num_sublayers(self) -> int:
        return sum(self.lengths)

    @property
    def ends(self) -> list[int]:
        """The last sublayer of each chunk."""
        return list(accumulate(self.lengths))

    def chunk_of(self, sublayer: int) -> int:
        """The chunk, from 1, that sublayer 1..L lies in."""
        return 1 + sum(end < sublayer for end in self.ends)

    def end_of_chunk(self, sublayer: int) -> int:
        """The last sublayer of the chunk that `sublayer` lies in."""
        return self.ends[self.chunk_of(sublayer) - 1]

    def sources_of(self, reader: int) -> list[SourceId]:
        """What sublayer 1..L reads; L + 1 stands for the final aggregator in front of the head."""
        chunk = self.chunk_of(min(reader, self.num_sublayers))
        first_raw = ([0, *self.ends])[chunk - 1] + 1
        return [SourceId("chunk", n) for n in range(chunk)] + self._own_chunk(first_raw, reader)

    def _own_chunk(self, first: int, reader: int) -> list[SourceId]:
        return [SourceId("raw", i) for i in range(first, reader)]


class PartialSumPlan(ChunkPlan):
    """Block Attention Residuals: of its own chunk a reader sees one tensor, the sum so far."""

    def _own_chunk(self, first: int, reader: int) -> list[SourceId]:
        return [SourceId("partial", reader - 1)] if reader > first else []


def reader_blocks(lengths: Sequence[int], num_readers: int, width: int) -> list[range]:
    """Readers 1..R in runs of at most `width`, for whom one reading of the sources before a run can serve.

    Whole chunks are packed together as long as they fit; one that does not fit is cut. Readers past the last
    chunk (the final aggregator) count as a chunk of one.

    lengths: sublayers of each chunk.
    """
    rest = num_readers - sum(lengths)
    sizes: list[int] = []
    can_grow = False
    for length in [*lengths, *[1] * rest]:
        if can_grow and sizes[-1] + length <= width:
            sizes[-1] += length
        else:
            sizes += [width] * (length // width) + [length % width] * (length % width > 0)
            can_grow = length < width
    ends = list(accumulate(sizes))
    return [range(end - size + 1, end + 1) for size, end in zip(sizes, ends, strict=True)]


def best_chunk_size(num_sublayers: int, similarity: float = 0.5) -> float:
    """S* = sqrt(L (1 - a) / (1 + a)), arXiv:2605.20708 proposition 1.

    similarity: a, the mean cosine of neighbouring sources; the paper finds 0.4 to 0.6.

    Raises: ValueError for a similarity outside [0, 1).
    """
    if not 0 <= similarity < 1:
        raise ValueError(f"similarity must lie in [0, 1); got {similarity:g}")
    return math.sqrt(num_sublayers * (1 - similarity) / (1 + similarity))


def chunk_size_rule(num_sublayers: int, similarity: float = 0.5) -> int:
    """`best_chunk_size` to the nearest integer that a stack of sublayers can be cut by."""
    return min(max(round(best_chunk_size(num_sublayers, similarity)), 1), num_sublayers)


def segment(similarity: np.ndarray, num_chunks: int) -> tuple[int, ...]:
    """Lengths of the chunks of least scatter (`scatter_of`), best over all ways to cut (Fisher 1958).

    Args:
        similarity: cosines between the outputs of all sublayers, (L, L).

    Raises: ValueError for a number of chunks outside [1, L].
    """
    num = len(similarity)
    if not 1 <= num_chunks <= num:
        raise ValueError(f"num_chunks must lie in [1, {num}], the number of sublayers; got {num_chunks}")
    scatter = _scatter_table(similarity)
    # cost[n, e]: the least scatter of sources 0..e-1 in n chunks; cut[n, e]: where the last of them begins.
    cost = np.full((num_chunks + 1, num + 1), np.inf)
    cut = np.zeros((num_chunks + 1, num + 1), dtype=int)
    cost[0, 0] = 0.0
    for n in range(1, num_chunks + 1):
        for end in range(n, num + 1):
            options = cost[n - 1, :end] + scatter[:end, end]
            cut[n, end] = int(np.argmin(options))
            cost[n, end] = options[cut[n, end]]
    lengths: list[int] = []
    end = num
    for n in range(num_chunks, 0, -1):
        lengths.append(end - int(cut[n, end]))
        end = int(cut[n, end])
    return tuple(reversed(lengths))


def scatter_of(similarity: np.ndarray, lengths: tuple[int, ...]) -> float:
    """sum over chunks C of |C| - sum_{i,j in C} cos(v_i, v_j) / |C|: unit vectors around their chunk's mean."""
    table = _scatter_table(similarity)
    ends = list(accumulate(lengths))
    return float(sum(table[end - length, end] for length, end in zip(lengths, ends, strict=True)))


def _scatter_table(similarity: np.ndarray) -> np.ndarray:
    """[first, end]: the scatter of one chunk of sources first..end-1; 0 where there are none, (L + 1, L + 1)."""
    num = len(similarity)
    corner = np.zeros((num + 1, num + 1))
    corner[1:, 1:] = similarity.cumsum(0).cumsum(1)
    diagonal = np.diagonal(corner)
    inside = diagonal[None, :] - corner - corner.T + diagonal[:, None]
    length = np.arange(num + 1)[None, :] - np.arange(num + 1)[:, None]
    return np.where(length > 0, length - inside / np.maximum(length, 1), 0.0)
