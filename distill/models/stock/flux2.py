"""Flux.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.models.stock.base import register
from distill.models.stock.flux import grid_places


@register(
    "Flux2Transformer2DModel",
    sample_shape=lambda config: (config.in_channels, 64, 64),
    conditions={"encoder_hidden_states": "joint_attention_dim"},
    guidance=4.0,
)
def flux2(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """It multiplies t by 1000 itself. Its latents come patchified: a cell is a token. Text is placed along axis 3."""
    batch, channels, rows, columns = x_t.shape
    text = torch.zeros(y["encoder_hidden_states"].shape[1], 4, device=x_t.device)
    text[:, 3] = torch.arange(len(text), device=x_t.device)
    told = {"guidance": torch.full_like(t, guidance)} if model.config.guidance_embeds and guidance is not None else {}
    tokens = model(
        hidden_states=x_t.flatten(2).transpose(1, 2), timestep=t, img_ids=grid_places(rows, columns, 4, x_t),
        txt_ids=text, return_dict=False, **told, **y,
    )[0]  # fmt: skip
    return tokens.transpose(1, 2).reshape(batch, channels, rows, columns)
