"""What all routings have in common that mix earlier outputs with weights over depth."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from dar.chunks import ChunkPlan, reader_blocks
from dar.history import Source, SourceHistory
from dar.routing.base import Routing, RoutingConfig
from dar.routing.mixers import Fold, Mixer, mixer_for
from dar.routing.weighers import Weigher

READERS_PER_BLOCK = 4  # of the kernels: so many mixtures fit into a program's registers at d = 1152


class DepthStream:
    """One forward pass."""

    def __init__(self, routing: DepthRouting, history: SourceHistory, mixer: Mixer) -> None:
        self._num_readers = routing.num_readers
        self._starts_as_residual = routing.starts_as_residual
        self._head_reads_plain_sum = not routing.config.final
        self._history = history
        self._mixer = mixer
        self._plain_sum = history.previous
        self._reader = 0

    @property
    def weights(self) -> list[Tensor]:
        """What each reader so far gave its sources, (N, B, T) each."""
        return self._mixer.weights()

    def read(self, base: Tensor | None = None) -> Tensor:
        """base: the plain residual stream, if the caller holds it: what starts as that stream, and who reads it plain,
        then gets it exactly."""
        self._reader += 1
        if self._reader > self._num_readers:
            return self._plain_sum if base is None else base + (self._plain_sum - self._plain_sum.detach())
        return self._mix(self._history.sources(), base if self._starts_as_residual else None)

    def _mix(self, sources: Sequence[Source], base: Tensor | None) -> Tensor:
        return self._mixer.mixture(sources, self._reader, self._history.previous, base)

    def copy(self) -> DepthStream:
        """The stream as it is now, which goes on by itself."""
        twin = copy.copy(self)
        twin._history = self._history.copy()
        return twin

    def write(self, output: Tensor) -> None:
        self._history.append(output)
        if self._head_reads_plain_sum:
            self._plain_sum = self._plain_sum + output


class AnchoredStream(DepthStream):
    """The embedding stands outside the mixture: h_l = h_0 + sum over the others."""

    @property
    def weights(self) -> list[Tensor]:
        embedding = self._history.sources()[0].value
        return [embedding.new_zeros(0, *embedding.shape[:2]), *super().weights][: self._reader]

    def _mix(self, sources: Sequence[Source], base: Tensor | None) -> Tensor:
        embedding, *others = sources
        if not others:
            return embedding.value
        if base is None:
            return embedding.value + super()._mix(others, None)
        # The base holds the embedding already, but not its gradient.
        return super()._mix(others, base) + (embedding.value - embedding.value.detach())


class DepthRouting(Routing):
    """A reader per sublayer and, with `config.final`, one in front of the head.

    Subclasses say what history they keep and how sources are weighed.

    folds: timesteps at which weights are constants; none in a model as it is trained. They are not saved.
    backend: "torch", "triton" or "auto", as `dar.depth_route` takes it.
    blocks: of readers, for each of which the kernels read the sources before it once.
    """

    plan_type = ChunkPlan

    def __init__(self, config: RoutingConfig, num_sublayers: int, dim: int) -> None:
        super().__init__(config, num_sublayers, dim)
        self.plan = self.plan_type.of(num_sublayers, config.chunk_size)
        self.num_readers = num_sublayers + config.final
        self.folds: list[Fold] = []
        self.backend = "auto"
        self.blocks = reader_blocks(self.plan.lengths, self.num_readers, READERS_PER_BLOCK)

    @property
    def sums_chunks(self) -> bool:
        """Whether the sources of any reader add up to the plain residual stream."""
        # The last chunk is never summarised.
        return self.config.summary == "sum" or max(self.plan.lengths[:-1], default=1) == 1

    def open(self, embedding: Tensor, t_embedding: Tensor, *, taped: bool = True) -> DepthStream:
        """taped: whether the pass may be held on one tape (`dar.trunk`): not where parts of it are computed twice."""
        fold = next((fold for fold in self.folds if fold.matches(t_embedding)), None)
        # At a folded timestep all samples share e(t), and the queries with it.
        weigher = self.weigher(t_embedding if fold is None else fold.embedding.to(t_embedding))
        mixer = mixer_for(weigher, embedding, self.blocks, self.backend, fold, taped=taped)
        stream_type = AnchoredStream if self.anchored else DepthStream
        return stream_type(self, self.history(embedding), mixer)

    @property
    def anchored(self) -> bool:
        """Whether the embedding stands outside the mixture."""
        return False

    def history(self, embedding: Tensor) -> SourceHistory:
        """Where the sources of one forward pass are kept."""
        return SourceHistory(self.plan, self.config.summary, embedding)

    @abstractmethod
    def weigher(self, t_embedding: Tensor) -> Weigher:
        """The weights' rule for one forward pass at e(t), (B, d), or (d) where all samples are at one timestep."""
