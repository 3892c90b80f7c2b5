"""The readers of a routing with weights over depth, and what lies behind each of their sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dar.routing import DepthRouting, Routing

EMBEDDING = "embedding"
HEAD = "head"
SUBLAYERS = ("attn", "mlp")
"""Of a block of a SiT."""


@dataclass(frozen=True)
class Reader:
    """One that mixes sources: a sublayer, or the aggregator in front of the head.

    sources: their names, in the order of its weights.
    covers: the sublayers, from 1, whose outputs are in each source; none for the embedding.
    """

    name: str
    sources: Sequence[str]
    covers: Sequence[range]

    @property
    def embedding(self) -> list[int]:
        """Places of the embedding among the sources: one or none."""
        return [place for place, covered in enumerate(self.covers) if not covered]

    def sources_within(self, first: float, last: float) -> list[int]:
        """Places of the sources whose middle sublayer m has first < m <= last."""
        middles = [(covered[0] + covered[-1]) / 2 if covered else None for covered in self.covers]
        return [place for place, middle in enumerate(middles) if middle is not None and first < middle <= last]


def readers_of(routing: Routing, sublayers: Sequence[str] = SUBLAYERS) -> list[Reader]:
    """Its readers by depth, with the sources that they weigh; none for a routing without weights over depth.

    sublayers: names of a block's.
    """
    if not isinstance(routing, DepthRouting):
        return []
    plan = routing.plan
    chunks = [plan.chunk_of(sublayer) for sublayer in range(1, plan.num_sublayers + 1)]
    readers = []
    for number in range(1, routing.num_readers + 1):
        sources = plan.sources_of(number)[routing.anchored :]  # an anchored embedding is not weighed
        covers = [_covers(chunks, *source) for source in sources]
        names = [_source_name(*source, covered, sublayers) for source, covered in zip(sources, covers, strict=True)]
        readers.append(Reader(sublayer_name(number, plan.num_sublayers, sublayers), names, covers))
    return readers


def sublayer_name(sublayer: int, num_sublayers: int, sublayers: Sequence[str] = SUBLAYERS) -> str:
    """ "attn 1", "mlp 1", "attn 2", ...; L + 1 is the head."""
    if sublayer > num_sublayers:
        return HEAD
    block, place = divmod(sublayer - 1, len(sublayers))
    return f"{sublayers[place]} {block + 1}"


def _source_name(kind: str, index: int, covered: range, sublayers: Sequence[str]) -> str:
    """The name of a `SourceId`; one that holds the output of a single sublayer is called after it."""
    if not covered:
        return EMBEDDING
    last = sublayer_name(covered[-1], covered[-1], sublayers)
    if len(covered) == 1:
        return last
    return f"chunk {index}" if kind == "chunk" else f"up to {last}"


def _covers(chunks: Sequence[int], kind: str, index: int) -> range:
    """The sublayers whose outputs are in a `SourceId`; `chunks` has the chunk of each sublayer."""
    if index == 0:
        return range(0)
    chunk = index if kind == "chunk" else chunks[index - 1]
    first = chunks.index(chunk) + 1
    if kind == "chunk":
        return range(first, first + chunks.count(chunk))
    return range(index if kind == "raw" else first, index + 1)
