"""Flux.1: image and text side by side in double blocks, then joint in single ones."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("FluxTransformer2DModel")
def flux(model: Any) -> Architecture:
    timestep = "time_text_embed.timestep_embedder"
    return double_then_single(model, timestep, ("encoder_hidden_states", "joint"), ("hidden_states", "joint"))


def double_then_single(model: Any, timestep: str, *single_carry: tuple[str, str]) -> Architecture:
    """The joint stream begins with what the double blocks made of both; the head reads its image tokens.

    single_carry: what a single block takes and hands on.
    """
    double, single = "transformer_blocks", "single_transformer_blocks"
    num_double, num_single = len(model.transformer_blocks), len(model.single_transformer_blocks)
    last = f"{double}.{num_double - 1}"
    return Architecture(
        streams={
            "image": StreamNorms(norms_of(double, num_double, "norm1", "norm2"), leaves=last),
            "text": StreamNorms(norms_of(double, num_double, "norm1_context", "norm2_context"), leaves=last),
            "joint": StreamNorms(norms_of(single, num_single, "norm"), head="norm_out", sublayers=("block",)),
        },
        timestep=timestep,
        blocks={
            **all_carry(double, num_double, ("encoder_hidden_states", "text"), ("hidden_states", "image")),
            **all_carry(single, num_single, *single_carry),
        },
    )
