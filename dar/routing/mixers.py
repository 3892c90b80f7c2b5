"""How a reader's sources become its input: one reader at a time or all on one tape, by torch or by the kernels.

All give the same numbers. A tape takes queries that are known beforehand, in eager mode; the kernels know softmax only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from dar.history import Source
from dar.kernels import choose_backend, in_kernel_dtype
from dar.route import EPS, mix
from dar.routing.queries import KnownQueries
from dar.routing.weighers import SoftmaxWeigher, Weigher
from dar.tape import TorchGradients, TorchTape
from dar.trunk import RoutedTrunk


class Mixer(Protocol):
    """One forward pass."""

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None) -> Tensor:
        """What `reader` (from 1) reads, (B, T, d); `previous` is what its predecessor wrote.

        base: as in `dar.route.mixed`; a mixer that has no use for it passes it by.
        """
        ...

    def weights(self) -> list[Tensor]:
        """What each reader so far gave its sources, (N, B, T)."""
        ...


class TorchMixer:
    """Reader by reader, whatever weighs."""

    def __init__(self, weigher: Weigher) -> None:
        self._weigher = weigher
        self._weights: list[Tensor] = []

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None) -> Tensor:
        mixture, weights = self._weigher.mixed(sources, reader, previous, base)
        self._weights.append(weights.detach())  # with their graph, what checkpointing computes again would stay
        return mixture

    def weights(self) -> list[Tensor]:
        return self._weights


class OperatorMixer:
    """`dar::route` for each reader: for queries that depend on what came before, and for torch.compile."""

    def __init__(self, weigher: SoftmaxWeigher) -> None:
        self._weigher = weigher
        self._logits: list[Tensor] = []
        self._counts: list[float] = []

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None) -> Tensor:
        from dar.kernels.op import route

        scorer, count = self._weigher.scorer, self._weigher.count(len(sources))
        for source in sources:
            source.value = in_kernel_dtype(source.value)
        values = [source.value for source in sources]
        mixture, logits, _ = route(values, scorer.query(reader, previous), scorer.scale, EPS, count)
        self._logits.append(logits.detach())
        self._counts.append(count)
        return mixture

    def weights(self) -> list[Tensor]:
        return [logits.softmax(0) * count for logits, count in zip(self._logits, self._counts, strict=True)]


class TapeMixer:
    """All readers on one tape (`dar.trunk`): a source's gradient is gathered from all of its readers at once."""

    def __init__(self, weigher: SoftmaxWeigher, trunk: RoutedTrunk, num_readers: int) -> None:
        self._count = weigher.count
        self._trunk = trunk
        self._num_readers = num_readers
        self._readers: list[int] = []
        self._alone: dict[int, Tensor] = {}  # by reader: its only source

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None) -> Tensor:
        self._readers.append(reader)
        if len(sources) == 1 and base is None:  # whatever the query is, which then gets no gradient to the bit
            return self._alone.setdefault(reader, sources[0].value)
        for source in sources:
            if source.entry is None:
                readers = range(reader, min(source.readers[-1], self._num_readers) + 1)
                source.value, source.entry = self._trunk.source(source.value, readers)
        entries = [source.entry for source in sources if source.entry is not None]
        values = [source.value for source in sources]
        return self._trunk.read(reader, values, entries, self._count(len(sources)), base)

    def weights(self) -> list[Tensor]:
        """Without gradient."""
        ones = {reader: value.new_ones(1, *value.shape[:2]) for reader, value in self._alone.items()}
        return [ones[reader] if reader in ones else self._trunk.weights(reader) for reader in self._readers]


@dataclass(frozen=True, eq=False)
class Fold:
    """What replaces the weights at one timestep.

    t: the timestep. embedding: its e(t), (d), by which it is recognised.
    weights: per reader (N, 1, T), the same for every sample; None where a reader goes on looking at its sources.
    """

    t: float
    embedding: Tensor
    weights: Sequence[Tensor | None]

    def matches(self, t_embedding: Tensor) -> bool:
        """Whether all samples, (B, d), are at this timestep, to the precision in which e(t) was computed.

        Looking at values, this waits for the device, and torch.compile cannot have it in one graph.
        """
        tolerance = max(1e-5, 4 * precision_of(t_embedding))
        return torch.allclose(
            t_embedding.float(), self.embedding.float().expand_as(t_embedding), rtol=tolerance, atol=tolerance
        )


def precision_of(tensor: Tensor) -> float:
    """Of the arithmetic that made it: autocast's, where it is on."""
    device = tensor.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype
    return max(torch.finfo(tensor.dtype).eps, torch.finfo(autocast).eps)


class FoldedMixer:
    """Constant weights where a fold has them, else another mixer's."""

    def __init__(self, fold: Fold, unfolded: Mixer) -> None:
        self._fold = fold
        self._unfolded = unfolded
        self._weights: list[Tensor | None] = []  # None where they are the other mixer's

    def mixture(self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None) -> Tensor:
        constant = self._fold.weights[reader - 1]
        if constant is None:
            self._weights.append(None)
            return self._unfolded.mixture(sources, reader, previous, base)
        weights = constant.to(previous.device).expand(-1, len(previous), -1)
        self._weights.append(weights)
        return mix([source.value for source in sources], weights)

    def weights(self) -> list[Tensor]:
        unfolded = iter(self._unfolded.weights())
        return [next(unfolded) if weights is None else weights for weights in self._weights]


def fused_trunk(queries: KnownQueries, blocks: Sequence[range]) -> RoutedTrunk:
    """By the kernels, which read early sources once for a block of readers."""
    from dar.kernels.gradients import Gradients
    from dar.kernels.tape import Tape

    tape = Tape(queries.queries, blocks, queries.scale, EPS, keeps=torch.is_grad_enabled())
    return RoutedTrunk(queries.queries, tape, partial(Gradients, tape))


def torch_trunk(queries: KnownQueries, batch: int) -> RoutedTrunk:
    """By plain torch, for B samples."""
    tape = TorchTape(queries.queries, batch, queries.scale, EPS, keeps=torch.is_grad_enabled())
    return RoutedTrunk(queries.queries, tape, partial(TorchGradients, tape))


def mixer_for(
    weigher: Weigher,
    embedding: Tensor,
    blocks: Sequence[range],
    backend: str,
    fold: Fold | None = None,
    *,
    taped: bool,
) -> Mixer:
    """The fastest mixer that can run here, of the backend that is asked for (`dar.route.depth_route`).

    taped: whether a tape may serve.
    """
    if fold is not None:
        # A tape's backward pass does not know of readers that are passed over.
        if torch.is_grad_enabled():
            return FoldedMixer(fold, TorchMixer(weigher))
        return FoldedMixer(fold, mixer_for(weigher, embedding, blocks, backend, taped=taped))
    fused = choose_backend(backend, [embedding]) == "triton"
    if not isinstance(weigher, SoftmaxWeigher):
        return TorchMixer(weigher)
    if taped and isinstance(weigher.scorer, KnownQueries) and not torch.compiler.is_compiling():
        trunk = fused_trunk(weigher.scorer, blocks) if fused else torch_trunk(weigher.scorer, len(embedding))
        return TapeMixer(weigher, trunk, num_readers=blocks[-1][-1])
    return OperatorMixer(weigher) if fused else TorchMixer(weigher)
