"""PixArt-alpha and -sigma, arXiv:2310.00426."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.models.stock.base import register, square_of

PIXELS_PER_CELL = 8


@register(
    "PixArtTransformer2DModel",
    sample_shape=square_of,
    conditions={"encoder_hidden_states": "caption_channels"},
    masks=("encoder_attention_mask",),
    prediction="ddpm_eps",
)
def pixart(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """Its time is DDPM's index; behind eps it predicts a variance that nobody asks for."""
    batch, channels, height, width = x_t.shape
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        size = x_t.new_tensor([height * PIXELS_PER_CELL, width * PIXELS_PER_CELL])
        added = {"resolution": size.expand(batch, 2), "aspect_ratio": x_t.new_full((batch, 1), height / width)}
    output = model(hidden_states=x_t, timestep=t, added_cond_kwargs=added, return_dict=False, **y)[0]
    return torch.narrow(output, 1, 0, channels)
