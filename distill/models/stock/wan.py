"""Wan 2.1, arXiv:2503.20314: video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.models.stock.base import register


@register(
    "WanTransformer3DModel",
    sample_shape=lambda config: (config.in_channels, 21, 60, 104),  # 81 frames of 480 x 832
    conditions={"encoder_hidden_states": "text_dim"},
)
def wan(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """Its time is 1000 t; x_t is (B, C, F, H, W)."""
    return model(hidden_states=x_t, timestep=1000 * t, return_dict=False, **y)[0]
