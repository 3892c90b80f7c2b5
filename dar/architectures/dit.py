"""DiT as diffusers has it, arXiv:2212.09748."""

from typing import Any

from dar.architectures.base import Architecture, StreamNorms, all_carry, norms_of, register_architecture


@register_architecture("DiTTransformer2DModel")
def dit(model: Any) -> Architecture:
    """Each block has a timestep embedder of its own; converted checkpoints hold copies of one."""
    depth = len(model.transformer_blocks)
    return Architecture(
        streams={"image": StreamNorms(norms_of("transformer_blocks", depth, "norm1", "norm3"), head="norm_out")},
        timestep="transformer_blocks.0.norm1.emb.timestep_embedder",
        blocks=all_carry("transformer_blocks", depth, ("hidden_states", "image")),
    )
