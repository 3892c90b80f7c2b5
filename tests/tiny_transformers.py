"""Stock transformers of diffusers, small, with random weights: none is zero at the start."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

TOKENS, TEXT, POOLED = 16, 12, 10


def randomised(model: Any) -> Any:
    """Every parameter drawn anew; what a block writes is then as large as the stream."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        fan_in = parameter.shape[-1] if parameter.dim() > 1 else 9
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3 / fan_in**0.5
    return model.eval()


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _text(**more: Any) -> dict[str, Any]:
    return {"encoder_hidden_states": _normal(2, 5, TEXT), "return_dict": False, **more}


def sd3(num_layers: int = 4, **changes: Any) -> tuple[Any, dict[str, Any]]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=num_layers, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=16, pooled_projection_dim=POOLED,
        pos_embed_max_size=8, **changes,
    )  # fmt: skip
    inputs = {"hidden_states": _normal(2, 4, 8, 8), "pooled_projections": _normal(2, POOLED)}
    return randomised(model), _text(**inputs, timestep=torch.tensor([300.0, 800.0]))


def sd35() -> tuple[Any, dict[str, Any]]:
    return sd3(dual_attention_layers=(0, 1), qk_norm="rms_norm")


def qwen_image() -> tuple[Any, dict[str, Any]]:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    inputs = {"hidden_states": _normal(2, TOKENS, 16), "encoder_hidden_states_mask": mask}
    return randomised(model), _text(**inputs, timestep=torch.tensor([0.3, 0.8]), img_shapes=[[(1, 4, 4)]] * 2)


def flux() -> tuple[Any, dict[str, Any]]:
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=POOLED, guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    inputs = {"hidden_states": _normal(2, TOKENS, 16), "pooled_projections": _normal(2, POOLED)}
    places = {"img_ids": _grid(3), "txt_ids": torch.zeros(5, 3)}
    guidance = torch.tensor([3.5, 3.5])
    return randomised(model), _text(**inputs, **places, timestep=torch.tensor([0.3, 0.8]), guidance=guidance)


def flux2() -> tuple[Any, dict[str, Any]]:
    model = diffusers.Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    places = {"img_ids": _grid(4), "txt_ids": torch.zeros(5, 4)}
    times = {"timestep": torch.tensor([0.3, 0.8]), "guidance": torch.tensor([3.5, 3.5])}
    return randomised(model), _text(hidden_states=_normal(2, TOKENS, 16), **places, **times)


def _grid(width: int) -> torch.Tensor:
    places = torch.zeros(4, 4, width)
    places[..., 1], places[..., 2] = torch.arange(4.0)[:, None], torch.arange(4.0)
    return places.view(TOKENS, width)


def wan(cross_attn_norm: bool = True) -> tuple[Any, dict[str, Any]]:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4,
        text_dim=TEXT, freq_dim=16, ffn_dim=32, num_layers=3, cross_attn_norm=cross_attn_norm, rope_max_seq_len=32,
    )  # fmt: skip
    return randomised(model), _text(hidden_states=_normal(2, 4, 3, 8, 8), timestep=torch.tensor([300, 800]))


def wan_identity() -> tuple[Any, dict[str, Any]]:
    return wan(cross_attn_norm=False)


def pixart() -> tuple[Any, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        cross_attention_dim=16, sample_size=8, patch_size=2, caption_channels=TEXT, use_additional_conditions=False,
    )  # fmt: skip
    added = {"resolution": None, "aspect_ratio": None}
    inputs = {"hidden_states": _normal(2, 4, 8, 8), "timestep": torch.tensor([300, 800])}
    return randomised(model), _text(**inputs, encoder_attention_mask=torch.ones(2, 5), added_cond_kwargs=added)


def dit() -> tuple[Any, dict[str, Any]]:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    times = {"timestep": torch.tensor([300, 800]), "class_labels": torch.tensor([3, 7])}
    return randomised(model), {"hidden_states": _normal(2, 4, 8, 8), **times, "return_dict": False}


TINY = {
    "sd3": sd3, "sd35": sd35, "qwen_image": qwen_image, "flux": flux, "flux2": flux2, "wan": wan,
    "wan_identity": wan_identity, "pixart": pixart, "dit": dit,
}  # fmt: skip


def in_bfloat16(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Timesteps and places keep their precision."""
    kept = ("timestep", "img_ids", "txt_ids")
    return model.to(torch.bfloat16), {
        name: value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() and name not in kept
        else value
        for name, value in inputs.items()
    }  # fmt: skip
