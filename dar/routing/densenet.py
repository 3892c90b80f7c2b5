"""One learned scalar per reader and source, as in DenseFormer (arXiv:2402.02622): the control without content or t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dar.history import Source
from dar.route import mix
from dar.routing.base import RoutingConfig, register
from dar.routing.depth import DepthRouting


class FixedWeigher:
    """The same weights for every sample and token."""

    def __init__(self, by_reader: Sequence[Tensor]) -> None:
        self._by_reader = by_reader

    def mixed(
        self, sources: Sequence[Source], reader: int, previous: Tensor, base: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        weights = self._by_reader[reader - 1][:, None, None].expand(-1, *previous.shape[:2])
        return mix([source.value for source in sources], weights, base), weights


@register("densenet")
class DenselyConnected(DepthRouting):
    """h_l = sum_i a_{l,i} v_i with a free sign and no softmax; a = 1, the plain sum, at initialisation."""

    def __init__(self, config: RoutingConfig, num_sublayers: int, dim: int) -> None:
        super().__init__(config, num_sublayers, dim)
        self._num_sources = [len(self.plan.sources_of(reader)) for reader in range(1, self.num_readers + 1)]
        self.scalars = nn.Parameter(torch.ones(sum(self._num_sources)))  # reader after reader

    @property
    def starts_as_residual(self) -> bool:
        return self.sums_chunks

    def weigher(self, t_embedding: Tensor) -> FixedWeigher:
        return FixedWeigher(self.scalars.split(self._num_sources))
