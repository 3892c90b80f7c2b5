"""Hyper-Connections (arXiv:2409.19606) and their doubly stochastic form, mHC (arXiv:2512.24880).

The residual stream is n streams H_1..H_n. A sublayer reads h = sum_i pre_i H_i and its output v is written
as H'_j = sum_i res_ij H_i + post_j v. pre, res and post are learned per sublayer and depend on the token.

Legend: B batch, T tokens, n streams, d width; P = 2 n + n^2 coefficients of a sublayer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dar.routing.base import Routing, RoutingConfig, register

SINKHORN_STEPS = 20
DIAGONAL_LOGIT = 4.0
TOKEN_GATE = 0.01


class Coefficients(NamedTuple):
    """pre (B, T, n), res (B, T, n, n) from stream i to stream j, post (B, T, n)."""

    pre: Tensor
    res: Tensor
    post: Tensor


class Mixing(nn.Module, ABC):
    """The coefficients of one sublayer as a function of the streams (B, T, n, d)."""

    @abstractmethod
    def forward(self, streams: Tensor) -> Coefficients: ...


class FreeMixing(Mixing):
    """Any real coefficients: static + gate * tanh(LayerNorm(H_i) W), row i of them from stream i.

    At initialisation W = 0, sublayer l reads stream l mod n, streams keep to themselves and each gets the
    whole output: n equal residual streams.
    """

    def __init__(self, sublayer: int, num_streams: int, dim: int) -> None:
        super().__init__()
        pre = F.one_hot(torch.tensor(sublayer % num_streams), num_streams).float()
        self.static = nn.Parameter(torch.cat([pre[:, None], torch.eye(num_streams), torch.ones(num_streams, 1)], 1))
        self.token = nn.Parameter(torch.zeros(dim, num_streams + 2))
        self.gates = nn.Parameter(torch.full((3,), TOKEN_GATE))  # of pre, res, post

    def forward(self, streams: Tensor) -> Coefficients:
        num_streams = streams.shape[2]
        by_token = (F.layer_norm(streams, streams.shape[-1:]) @ self.token).tanh()
        gates = spread(self.gates, (1, num_streams, 1))
        coefficients = self.static + gates * by_token  # (B, T, n, n + 2)
        return Coefficients(coefficients[..., 0], coefficients[..., 1:-1], coefficients[..., -1])


class DoublyStochasticMixing(Mixing):
    """pre in (0, 1), post in (0, 2), res doubly stochastic: repeated mixing can neither blow up nor die out.

    Logits are static + gate * RMSNorm(all streams of the token) W. At initialisation the gates are 0, pre is
    1 / n each and post 1: n equal residual streams. W starts random, or equal streams would stay equal.
    """

    def __init__(self, sublayer: int, num_streams: int, dim: int) -> None:
        super().__init__()
        n = num_streams
        pre = torch.full((n,), math.log(1 / (n - 1)))
        res = DIAGONAL_LOGIT * torch.eye(n)
        self.static = nn.Parameter(torch.cat([pre, res.flatten(), torch.zeros(n)]))
        self.token = nn.Parameter(torch.empty(n * dim, 2 * n + n * n).normal_(std=0.02))
        self.gates = nn.Parameter(torch.zeros(3))

    def forward(self, streams: Tensor) -> Coefficients:
        n = streams.shape[2]
        joint = streams.flatten(2)
        by_token = F.rms_norm(joint, joint.shape[-1:], eps=1e-6) @ self.token
        gates = spread(self.gates, (n, n * n, n))
        pre, res, post = (self.static + gates * by_token).split([n, n * n, n], dim=-1)
        return Coefficients(pre.sigmoid(), sinkhorn(res.unflatten(-1, (n, n))), 2 * post.sigmoid())


MIXINGS: dict[str, type[Mixing]] = {"free": FreeMixing, "doubly_stochastic": DoublyStochasticMixing}


def spread(gates: Tensor, numbers: Sequence[int]) -> Tensor:
    """Each gate as often as its number says; `repeat_interleave` would wait for the device."""
    return torch.cat([gate.expand(number) for gate, number in zip(gates.unsqueeze(1), numbers, strict=True)])


def sinkhorn(logits: Tensor, num_steps: int = SINKHORN_STEPS) -> Tensor:
    """Doubly stochastic (.., n, n) near exp(logits): rows and columns normalised in turn, columns last."""
    for _ in range(num_steps):
        logits = logits.log_softmax(dim=-1).log_softmax(dim=-2)
    return logits.exp()


class HyperStream:
    """One forward pass over n streams (B, T, n, d)."""

    def __init__(self, mixings: nn.ModuleList, embedding: Tensor, num_streams: int) -> None:
        self._mixings = iter(mixings)
        self._streams = embedding.unsqueeze(2).expand(-1, -1, num_streams, -1)

    def read(self) -> Tensor:
        mixing = next(self._mixings, None)
        if mixing is None:
            # The head reads the mean. The papers' sum is n times that, which its LayerNorm takes out again.
            return self._streams.mean(2)
        self._coefficients = mixing(self._streams)
        return (self._coefficients.pre.unsqueeze(-2) @ self._streams).squeeze(-2)

    def write(self, output: Tensor) -> None:
        mixed = self._coefficients.res.transpose(-1, -2) @ self._streams
        self._streams = torch.addcmul(mixed, self._coefficients.post.unsqueeze(-1), output.unsqueeze(2))


@register("hyper")
class HyperConnections(Routing):
    """n streams with learned mixing: `free` (HC) or `doubly_stochastic` (mHC)."""

    starts_as_residual = True

    def __init__(self, config: RoutingConfig, num_sublayers: int, dim: int) -> None:
        super().__init__(config, num_sublayers, dim)
        mixing = MIXINGS[config.mixing]
        self.mixings = nn.ModuleList(mixing(i, config.streams, dim) for i in range(num_sublayers))

    def open(self, embedding: Tensor, t_embedding: Tensor) -> HyperStream:
        return HyperStream(self.mixings, embedding, self.config.streams)
