"""Flux.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.models.stock.base import pack, register, unpack


@register(
    "FluxTransformer2DModel",
    sample_shape=lambda config: (config.in_channels // 4, 128, 128),
    conditions={"encoder_hidden_states": "joint_attention_dim", "pooled_projections": "pooled_projection_dim"},
    guidance=3.5,
)
def flux(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """It multiplies t by 1000 itself, and takes 2 x 2 cells as a token; text has no place."""
    places = grid_places(x_t.shape[-2] // 2, x_t.shape[-1] // 2, 3, x_t)
    text = places.new_zeros(y["encoder_hidden_states"].shape[1], 3)
    told = {"guidance": torch.full_like(t, guidance)} if model.config.guidance_embeds and guidance is not None else {}
    tokens = model(
        hidden_states=pack(x_t), timestep=t, img_ids=places, txt_ids=text, return_dict=False, **told, **y
    )[0]  # fmt: skip
    return unpack(tokens, x_t)


def grid_places(rows: int, columns: int, width: int, like: Tensor) -> Tensor:
    """(rows columns, width) in float32: row and column of each token in numbers 1 and 2, the rest zero."""
    places = torch.zeros(rows, columns, width, device=like.device)
    places[..., 1] = torch.arange(rows, device=like.device)[:, None]
    places[..., 2] = torch.arange(columns, device=like.device)
    return places.view(rows * columns, width)
