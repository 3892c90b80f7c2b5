"""How a reader's sources become its input: in plain torch, by the fused operator, or all readers on one tape.

All give the same numbers. The kernels know softmax only; whatever weighs otherwise is mixed by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dar.history import Source
from dar.kernels import choose_backend
from dar.route import EPS, mix
from dar.routing.queries import KnownQueries
from dar.routing.weighers import SoftmaxWeigher, Weigher


class Mixer(Protocol):
    """One forward pass."""

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor) -> Tensor:
        """What `reader` (from 1) reads, (B, T, d); `previous` is what its predecessor wrote."""
        ...

    def weights(self) -> list[Tensor]:
        """What each reader so far gave its sources, (N, B, T)."""
        ...


class TorchMixer:
    """Weights first, then their sum."""

    def __init__(self, weigher: Weigher) -> None:
        self._weigher = weigher
        self._weights: list[Tensor] = []

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor) -> Tensor:
        weights = self._weigher.weights(sources, reader, previous)
        self._weights.append(weights)
        return mix([source.value for source in sources], weights)

    def weights(self) -> list[Tensor]:
        return self._weights


class OperatorMixer:
    """`dar::route` for each reader: for queries that depend on what came before, and for torch.compile."""

    def __init__(self, weigher: SoftmaxWeigher) -> None:
        self._weigher = weigher
        self._logits: list[Tensor] = []
        self._counts: list[float] = []

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor) -> Tensor:
        from dar.kernels.op import route

        scorer, count = self._weigher.scorer, self._weigher.count(len(sources))
        values = [_in_kernel_dtype(source).value for source in sources]
        mixture, logits, _ = route(values, scorer.query(reader, previous), scorer.scale, EPS, count)
        self._logits.append(logits)
        self._counts.append(count)
        return mixture

    def weights(self) -> list[Tensor]:
        return [logits.softmax(0) * count for logits, count in zip(self._logits, self._counts, strict=True)]


class TapeMixer:
    """All readers on one tape (`dar.kernels.trunk`): early sources are read once for a block, gradients pulled."""

    def __init__(self, weigher: SoftmaxWeigher, queries: KnownQueries, blocks: Sequence[range]) -> None:
        from dar.kernels.trunk import RoutedTrunk

        self._count = weigher.count
        self._trunk = RoutedTrunk(queries.queries, blocks, queries.scale, EPS)
        self._last_reader = blocks[-1][-1]
        self._weights: list[Callable[[], Tensor]] = []

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor) -> Tensor:
        if len(sources) == 1:  # whatever the query is, which then gets no gradient to the bit
            value = sources[0].value
            self._weights.append(lambda: value.new_ones(1, *value.shape[:2]))
            return value
        for source in sources:
            if source.entry is None:
                value = _in_kernel_dtype(source).value
                last_reader = min(source.readers[-1], self._last_reader)
                source.value, source.entry = self._trunk.source(value, last_reader)
        self._weights.append(lambda: self._trunk.weights(reader))
        entries = [source.entry for source in sources if source.entry is not None]
        values = [source.value for source in sources]
        return self._trunk.read(reader, values, entries, self._count(len(sources)))

    def weights(self) -> list[Tensor]:
        """Without gradient."""
        return [weights() for weights in self._weights]


def _in_kernel_dtype(source: Source) -> Source:
    """Kernels take sources of one dtype: autocast's where it is on, which the embedding alone does not have yet."""
    device = source.value.device.type
    if torch.is_autocast_enabled(device):
        source.value = source.value.to(torch.get_autocast_dtype(device))
    return source


def mixer_for(weigher: Weigher, embedding: Tensor, blocks: Sequence[range], backend: str) -> Mixer:
    """The fastest mixer that can run here, of the backend that is asked for (`dar.route.depth_route`)."""
    if not isinstance(weigher, SoftmaxWeigher) or choose_backend(backend, [embedding]) == "torch":
        return TorchMixer(weigher)
    if isinstance(weigher.scorer, KnownQueries) and not torch.compiler.is_compiling():
        return TapeMixer(weigher, weigher.scorer, blocks)
    return OperatorMixer(weigher)
