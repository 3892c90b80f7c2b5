"""How sources get their weights and are mixed with them, reader by reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from dar.history import Source
from dar.route import route
from dar.routing.queries import Scorer


class Weigher(Protocol):
    """The rule of one forward pass by which sources get their weights."""

    def mixed(
        self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mixture (B, T, d) and the weights (N, B, T) of N sources.

        `reader` counts from 1, `previous` is what its predecessor wrote; `base` as in `dar.route.mixed`.
        """
        ...


class SoftmaxWeigher:
    """softmax over the sources of what a scorer says."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def count(self, num_sources: int) -> float:
        """What the weights add up to."""
        return 1.0

    def mixed(
        self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        query, count = self.scorer.query(reader, previous), self.count(len(sources))
        values = [source.value for source in sources]
        return route(values, query, [source.inv_rms for source in sources], self.scorer.scale, count, base)


class CountWeigher(SoftmaxWeigher):
    """softmax times the number of sources: equal logits give the plain sum."""

    def count(self, num_sources: int) -> float:
        return float(num_sources)
