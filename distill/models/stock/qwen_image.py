"""Qwen-Image, arXiv:2508.02324."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.models.stock.base import pack, register, unpack


@register(
    "QwenImageTransformer2DModel",
    sample_shape=lambda config: (config.in_channels // 4, 128, 128),
    conditions={"encoder_hidden_states": "joint_attention_dim"},
    masks=("encoder_hidden_states_mask",),
)
def qwen_image(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """It multiplies t by 1000 itself, and takes 2 x 2 cells as a token."""
    shape = [(1, x_t.shape[-2] // 2, x_t.shape[-1] // 2)]
    tokens = model(hidden_states=pack(x_t), timestep=t, img_shapes=[shape] * len(x_t), return_dict=False, **y)[0]
    return unpack(tokens, x_t)
