"""Flux.2: as Flux.1, but single blocks take text and image as one tensor."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("Flux2Transformer2DModel")
def flux2(model: Any) -> Architecture:
    """The joint stream begins with what the double blocks made of both; the head reads its image tokens."""
    double, single = "transformer_blocks", "single_transformer_blocks"
    num_double, num_single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    last = f"{double}.{num_double - 1}"
    return Architecture(
        streams={
            "image": StreamNorms(norms_of(double, num_double, "norm1", "norm2"), leaves=last),
            "text": StreamNorms(norms_of(double, num_double, "norm1_context", "norm2_context"), leaves=last),
            "joint": StreamNorms(norms_of(single, num_single, "norm"), head="norm_out", sublayers=("block",)),
        },
        timestep="time_guidance_embed.timestep_embedder",
        blocks={
            **all_carry(double, num_double, ("encoder_hidden_states", "text"), ("hidden_states", "image")),
            **all_carry(single, num_single, ("hidden_states", "joint")),
        },
    )
