"""PixArt-alpha and -sigma, arXiv:2310.00426: cross attention to the text."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, norms_of, register_architecture


@register_architecture("PixArtTransformer2DModel")
def pixart(model: Any) -> Architecture:
    """Cross attention reads the stream without a norm: it has no reader, and counts as one sublayer with the first."""
    depth = len(model.transformer_blocks)
    norms = norms_of("transformer_blocks", depth, "norm1", "norm2")
    return Architecture(
        streams={"image": StreamNorms(norms, head="norm_out", sublayers=("attn+cross", "mlp"))},
        timestep="adaln_single.emb.timestep_embedder",
    )
