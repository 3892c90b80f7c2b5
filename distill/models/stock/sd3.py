"""Stable Diffusion 3 and 3.5, arXiv:2403.03206."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.models.stock.base import register, square_of


@register(
    "SD3Transformer2DModel",
    sample_shape=square_of,
    conditions={"encoder_hidden_states": "joint_attention_dim", "pooled_projections": "pooled_projection_dim"},
)
def sd3(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """Its time is 1000 t."""
    return model(hidden_states=x_t, timestep=1000 * t, return_dict=False, **y)[0]
