"""Queries q_l of depth routing: where they come from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class Scorer(Protocol):
    """The queries of one forward pass.

    scale: factor of the logits.
    """

    scale: float

    def query(self, reader: int, previous: Tensor) -> Tensor:
        """q of `reader` (counted from 1), whose predecessor wrote `previous`: (d), (B, d) or (B, T, d)."""
        ...


class KnownQueries:
    """Queries (R, d) or (B, R, d) that exist before the pass: a source can meet all its readers' at once.

    scale: factor of the logits; None for 1 / sqrt(d).
    """

    def __init__(self, queries: Tensor, scale: float | None = None) -> None:
        self.queries = queries
        self.scale = queries.shape[-1] ** -0.5 if scale is None else scale

    def query(self, reader: int, previous: Tensor) -> Tensor:
        return self.queries[..., reader - 1, :]


class TokenQueries:
    """Queries W_l v_{l-1}: each exists only when its reader's turn has come."""

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.shape[-1] ** -0.5
        self._weight = weight

    def query(self, reader: int, previous: Tensor) -> Tensor:
        return nn.functional.linear(previous, self._weight[reader - 1])


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
        return KnownQueries(torch.addcmul(self.weight, t_embedding.unsqueeze(-2), self.t_gate))


class DynamicQueries(nn.Module):
    """q_l = W_l v_{l-1}, one query per token, zero at initialisation; t enters through v's adaLN gate."""

    def __init__(self, num_readers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_readers, dim, dim))

    def forward(self, t_embedding: Tensor) -> TokenQueries:
        return TokenQueries(self.weight)


class GainedQueries(nn.Module):
    """q_l = w_l with keys RMSNorm(v) * g_l and logits that are not divided by sqrt(d), as AttnRes has them.

    The gain is multiplied into the query, which is the same; w_l is zero and g_l one at initialisation.
    """

    def __init__(self, num_readers: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_readers, dim))
        self.gain = nn.Parameter(torch.ones(num_readers, dim))

    def forward(self, t_embedding: Tensor) -> KnownQueries:
        return KnownQueries(self.weight * self.gain, scale=1.0)


QUERIES: dict[str, type[nn.Module]] = {
    "static": StaticQueries,
    "static_t": StaticTimeQueries,
    "dynamic": DynamicQueries,
}
