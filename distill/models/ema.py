"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distill.models.parameters import M, blank_copy, filled, frozen, learning
from distill.models.sharding import cut_like, own_part, whole

FIRST_SHARE = 0.05  # of the average that the first weights may be when training is over


def decay_within(decay: float, num_updates: int) -> float:
    """`decay`, or as much less as leaves the first of so many updates a twentieth of the average."""
    return min(decay, FIRST_SHARE ** (1 / num_updates))


class Ema(Generic[M]):
    """The average of what learns in a model; what is frozen is the model's own, not a copy.

    Averages are sharded where the model is.

    Args:
        blank: a `blank_copy` of the model, made before it was sharded; None for one that is not.
    """

    def __init__(self, model: M, decay: float, blank: M | None = None) -> None:
        self._blank = blank_copy(model) if blank is None else blank
        self._frozen = frozen(model)
        self._averages = {name: parameter.detach().clone() for name, parameter in learning(model).items()}
        self._average = get_ema_multi_avg_fn(decay)
        self._num_updates = 0

    @property
    def module(self) -> M:
        """A plain model with the averages, for evaluation.

        Of a sharded model it is put together anew each time, and all processes have to ask for it.
        """
        return filled(self._blank, {name: whole(tensor) for name, tensor in (self._frozen | self._averages).items()})

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move by (1 - decay) towards `model`; the first update copies."""
        current = learning(model)
        if self._num_updates:
            averages: list[Tensor] = [own_part(average) for average in self._averages.values()]
            values: list[Tensor] = [own_part(current[name]) for name in self._averages]
            self._average(averages, values, self._num_updates)
        else:
            self._copy(current)
        self._num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        averages = {name: whole(average) for name, average in self._averages.items()}
        return {"num_updates": self._num_updates, "averages": averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._copy({name: cut_like(state["averages"][name], average) for name, average in self._averages.items()})
        self._num_updates = state["num_updates"]

    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(values[name])
