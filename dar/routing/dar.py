"""Diffusion-Adaptive Routing, arXiv:2605.20708: eq. 5 (dense), eq. 6 (queries), eq. 7 (chunks)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from dar.history import ChunkPlan, Source, SourceHistory
from dar.route import mix, source_logits
from dar.routing.base import Routing, RoutingConfig, register


class Scorer(Protocol):
    """The queries of one forward pass, ready to score sources."""

    def logits(self, source: Source, reader: int, previous: Tensor) -> Tensor:
        """Logits (B, T) of `source` for `reader` (counted from 1), whose own predecessor wrote `previous`."""
        ...


class KnownQueries:
    """Queries (R, d) or (B, R, d) that exist before the pass: a source meets all its readers' at once."""

    def __init__(self, queries: Tensor) -> None:
        self._queries = queries

    def logits(self, source: Source, reader: int, previous: Tensor) -> Tensor:
        if source.logits is None:
            queries = self._queries[..., source.readers.start - 1 : source.readers.stop - 1, :]
            source.logits = source_logits(source.value, queries, source.inv_rms).unbind(1)
        return source.logits[reader - source.readers.start]


class StaticQueries(nn.Module):
    """q_l = w_l for every reader l, zero at initialisation."""

    def __init__(self, num_readers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_readers, dim))

    def forward(self, t_embedding: Tensor) -> KnownQueries:
        return KnownQueries(self.weight)


class StaticTimeQueries(nn.Module):
    """q_l = w_l + g_l * e(t), e(t) the backbone's timestep embedding (B, d).

    The paper asks for a contribution of e(t) that is zero at initialisation and costs no parameters of
    note; it does not say how. Here: one gate per channel and reader, g_l = 0 at first.
    """

    def __init__(self, num_readers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_readers, dim))
        self.t_gate = nn.Parameter(torch.zeros(num_readers, dim))

    def forward(self, t_embedding: Tensor) -> KnownQueries:
        return KnownQueries(torch.addcmul(self.weight, t_embedding.unsqueeze(1), self.t_gate))


class TokenQueries:
    """Queries W_l v_{l-1}: each exists only when its reader's turn has come."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._reader = 0
        self._query = weight

    def logits(self, source: Source, reader: int, previous: Tensor) -> Tensor:
        if reader != self._reader:
            self._reader, self._query = reader, nn.functional.linear(previous, self._weight[reader - 1])
        return source_logits(source.value, self._query.unsqueeze(1), source.inv_rms).squeeze(1)


class DynamicQueries(nn.Module):
    """q_l = W_l v_{l-1}, one query per token, zero at initialisation; t enters through v's adaLN gate."""

    def __init__(self, num_readers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_readers, dim, dim))

    def forward(self, t_embedding: Tensor) -> TokenQueries:
        return TokenQueries(self.weight)


QUERIES: dict[str, type[nn.Module]] = {
    "static": StaticQueries,
    "static_t": StaticTimeQueries,
    "dynamic": DynamicQueries,
}


class DepthStream:
    """One forward pass. `weights` gathers what each reader so far gave its sources, (N, B, T) each."""

    def __init__(self, routing: DepthRouting, embedding: Tensor, t_embedding: Tensor) -> None:
        self._config = routing.config
        self._num_readers = routing.num_readers
        self._scorer: Scorer = routing.queries(t_embedding)
        self._history = SourceHistory(routing.plan, routing.config.summary, embedding)
        self._plain_sum = embedding
        self.weights: list[Tensor] = []

    def read(self) -> Tensor:
        reader = len(self.weights) + 1
        if reader > self._num_readers:
            return self._plain_sum
        sources = self._history.sources()
        # With an anchor the embedding stands outside the softmax: h_l = h_0 + sum over the others.
        mixed = sources[1:] if self._config.anchor else sources
        if not mixed:
            self.weights.append(sources[0].value.new_zeros(0, *sources[0].value.shape[:2]))
            return sources[0].value
        logits = [self._scorer.logits(source, reader, self._history.previous) for source in mixed]
        weights = torch.stack(logits).softmax(dim=0)
        self.weights.append(weights)
        if self._config.scale == "count":
            weights = weights * len(mixed)
        h = mix([source.value for source in mixed], weights)
        return sources[0].value + h if self._config.anchor else h

    def write(self, output: Tensor) -> None:
        self._history.append(output)
        if not self._config.final:
            self._plain_sum = self._plain_sum + output


@register("dar")
class DepthRouting(Routing):
    """A reader per sublayer and, with `config.final`, one in front of the head."""

    def __init__(self, config: RoutingConfig, num_sublayers: int, dim: int) -> None:
        super().__init__(config, num_sublayers, dim)
        self.plan = ChunkPlan(num_sublayers, config.chunk_size)
        self.num_readers = num_sublayers + config.final
        self.queries = QUERIES[config.query](self.num_readers, dim)

    def open(self, embedding: Tensor, t_embedding: Tensor) -> DepthStream:
        return DepthStream(self, embedding, t_embedding)
