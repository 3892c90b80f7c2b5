"""A network part of its way from where its training began to where it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.models.parameters import trainable_parameters

KEPT = ".lora_A."  # LoRA adds B A, with B zero at first: with A as it is, B scaled by a share adds that share of B A


class PartWay:
    """model(x_t, t, y) with began + share (now - began) in the place of all that learns; adapters count by that share.

    Made before the training begins, so that `began` is what the network was copied from. What learns is kept a second
    time.

    Args:
        network: it goes on learning; no gradient reaches it from here.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        learning = {name: p for name, p in trainable_parameters(network).items() if KEPT not in name}
        self._began = {name: p.detach().clone() for name, p in learning.items()}
        self._share = torch.zeros((), device=next(iter(self._began.values())).device)

    def go(self, share: float) -> None:
        """From 0, where it began, to 1, where it is. On the device, so that captured graphs follow."""
        self._share.fill_(share)

    @torch.no_grad()
    def __call__(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        now = dict(self._network.named_parameters())
        there = {name: torch.lerp(began, now[name], self._share.to(began)) for name, began in self._began.items()}
        return functional_call(self._network, there, (x_t, t, y))
