"""A SiT as a model of diffusers. An exported folder holds this text together with all that it needs of `dar`.

It draws and is not trained: the functions here stand in for those of the same name, which keep what gradients need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from dar.reference import query_per_token
from dar.route import _routed, mixed
from dar.routing.mixers import TorchMixer
from dar.routing.weighers import Weigher
from dar.sit import SiT, SiTConfig


def mixer_for(weigher: Weigher, *_: Any, **__: Any) -> TorchMixer:
    """By torch, one reader after the other."""
    return TorchMixer(weigher)


def route(
    sources: Sequence[Tensor],
    query: Tensor,
    inv_rms: Sequence[Tensor],
    scale: float,
    count: float = 1.0,
    base: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The mixture (B, T, d) of N sources (B, T, d) and its weights (N, B, T), which add up to `count`."""
    mixture, _, weights = _routed(sources, inv_rms, query_per_token(query, sources[0]), scale, count, base)
    return mixture, weights


def mix(sources: Sequence[Tensor], weights: Tensor, base: Tensor | None = None) -> Tensor:
    """sum_i weights_i sources_i for weights (N, B, T) and N sources (B, T, d)."""
    return mixed(sources, weights.unsqueeze(-1).unbind(), base).to(sources[0].dtype)


class SiTTransformer2DModel(ModelMixin, ConfigMixin):
    """velocity = model(x_t, 1000 t, class_labels).sample, with x_t = (1 - t) x0 + t eps and velocity = eps - x0.

    Args:
        sit: the fields of SiTConfig.
    """

    @register_to_config
    def __init__(self, sit: dict[str, Any]) -> None:
        super().__init__()
        self.network = SiT(SiTConfig(**sit))

    @torch.no_grad()
    def forward(
        self, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """hidden_states: (B, C, H, W). timestep: 1000 t, (B) or a scalar. class_labels: (B); the last is "no class"."""
        t = (timestep.float() / 1000).expand(len(hidden_states))
        velocity = self.network(hidden_states, t, class_labels)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)
