"""Stable Diffusion 3 and 3.5, arXiv:2403.03206: image and text side by side."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("SD3Transformer2DModel")
def sd3(model: Any) -> Architecture:
    """The last block has no MLP for the text. Dual attention of 3.5 adds twice between two norms: one sublayer."""
    blocks, depth = "transformer_blocks", len(model.transformer_blocks)
    return Architecture(
        streams={
            "image": StreamNorms(norms_of(blocks, depth, "norm1", "norm2"), head="norm_out"),
            "text": StreamNorms(norms_of(blocks, depth, "norm1_context", "norm2_context")[:-1]),
        },
        timestep="time_text_embed.timestep_embedder",  # time_text_embed adds the pooled text to it
        blocks=all_carry(blocks, depth, ("encoder_hidden_states", "text"), ("hidden_states", "image")),
    )
