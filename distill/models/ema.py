"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distill.models.parameters import M, frozen_parameters, materialize, meta_copy, trainable_parameters
from distill.models.sharding import full_tensor, local_shard, shard_like

FIRST_SHARE = 0.05  # largest share of the final average that the initial weights may have


def limited_decay(decay: float, num_updates: int) -> float:
    """The smaller of `decay` and the value that gives the first of `num_updates` updates 1/20 of the final average."""
    return min(decay, FIRST_SHARE ** (1 / num_updates))


class Ema(Generic[M]):
    """Exponential moving average of a model's trainable parameters. Frozen ones are shared with the model, not copied.

    The averages of a sharded model are sharded too.

    Args:
        meta_model: a `meta_copy` of the model, made before sharding; None if the model is not sharded.
    """

    def __init__(self, model: M, decay: float, meta_model: M | None = None) -> None:
        self._meta_model = meta_copy(model) if meta_model is None else meta_model
        self._frozen = frozen_parameters(model)
        self._averages = {name: parameter.detach().clone() for name, parameter in trainable_parameters(model).items()}
        self._average = get_ema_multi_avg_fn(decay)
        self._num_updates = 0

    @property
    def module(self) -> M:
        """A model without sharding that holds the averages, for evaluation.

        If the model is sharded, each access gathers the averages, so every process must access it.
        """
        return self.with_averages(self.averages())

    def averages(self) -> dict[str, Tensor]:
        """The averages without sharding, by name; if the model is sharded, every process has to ask for them."""
        return {name: full_tensor(tensor) for name, tensor in self._averages.items()}

    def with_averages(self, averages: Mapping[str, Tensor]) -> M:
        """As `module`, with other averages in their place."""
        frozen = {name: full_tensor(tensor) for name, tensor in self._frozen.items()}
        return materialize(self._meta_model, {**frozen, **averages})

    @torch.no_grad()
    def load_averages(self, averages: Mapping[str, Tensor]) -> None:
        """Take averages without sharding in the place of these."""
        self._copy({name: shard_like(averages[name], average) for name, average in self._averages.items()})

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the averages by (1 - decay) towards `model`; the first update copies its parameters."""
        current = trainable_parameters(model)
        if self._num_updates:
            averages: list[Tensor] = [local_shard(average) for average in self._averages.values()]
            values: list[Tensor] = [local_shard(current[name]) for name in self._averages]
            self._average(averages, values, self._num_updates)
        else:
            self._copy(current)
        self._num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates, "averages": self.averages()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.load_averages(state["averages"])
        self._num_updates = state["num_updates"]

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(values[name])
