"""Flux.2: as Flux.1, but single blocks take text and image as one tensor."""

from typing import Any

from dar.architectures.base import Architecture, register_architecture
from dar.architectures.flux import double_then_single


@register_architecture("Flux2Transformer2DModel")
def flux2(model: Any) -> Architecture:
    return double_then_single(model, "time_guidance_embed.timestep_embedder", ("hidden_states", "joint"))
