"""Qwen-Image, arXiv:2508.02324: image and text side by side."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("QwenImageTransformer2DModel")
def qwen_image(model: Any) -> Architecture:
    """The last block's MLP of the text feeds nothing, so that its norm reads the stream as it is."""
    blocks, depth = "transformer_blocks", len(model.transformer_blocks)
    return Architecture(
        streams={
            "image": StreamNorms(norms_of(blocks, depth, "img_norm1", "img_norm2"), head="norm_out"),
            "text": StreamNorms(norms_of(blocks, depth, "txt_norm1", "txt_norm2")[:-1]),
        },
        timestep="time_text_embed.timestep_embedder",
        blocks=all_carry(blocks, depth, ("encoder_hidden_states", "text"), ("hidden_states", "image")),
    )
