"""Wan 2.1 and 2.2, arXiv:2503.20314: video, cross attention to the text."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("WanTransformer3DModel")
def wan(model: Any) -> Architecture:
    """norm2, of cross attention, is an Identity in some; it reads the stream all the same."""
    depth = len(model.blocks)
    norms = norms_of("blocks", depth, "norm1", "norm2", "norm3")
    return Architecture(
        streams={"video": StreamNorms(norms, head="norm_out", sublayers=("attn", "cross", "mlp"))},
        timestep="condition_embedder.time_embedder",
        blocks=all_carry("blocks", depth, ("hidden_states", "video")),
    )
