"""DiT as diffusers has it, arXiv:2212.09748."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.models.stock.base import register, square_of


@register(
    "DiTTransformer2DModel",
    sample_shape=square_of,
    prediction="ddpm_eps",
    num_classes=lambda config: config.num_embeds_ada_norm,
    has_one_timestep_embedder=False,
)
def dit(model: Any, x_t: Tensor, t: Tensor, y: Mapping[str, Tensor], guidance: float | None) -> Tensor:
    """Its time is DDPM's index; behind eps it predicts a variance that nobody asks for."""
    return model(hidden_states=x_t, timestep=t, class_labels=y["class_labels"], return_dict=False)[0][:, : x_t.shape[1]]
