"""Pipelines of diffusers that decode given latents by their own code: nothing is predicted, so latents stay."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor

from distill.models.stock.base import pack
from tests.vae_files import make_flux2_vae, make_qwen_image_vae, make_vae, make_wan_vae

SHAPE = (4, 8)


class Still(torch.nn.Module):
    """In the place of a transformer: predicts nothing."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, patch_size: int | tuple[int, ...]) -> None:
        super().__init__()
        self.config = FrozenDict(
            in_channels=16, patch_size=patch_size, sample_size=8, guidance_embeds=False, image_dim=None
        )

    @contextlib.contextmanager
    def cache_context(self, *_: Any, **more: Any) -> Iterator[None]:
        yield

    def forward(self, hidden_states: Tensor, **told: Any) -> tuple[Tensor]:
        return (torch.zeros_like(hidden_states),)


@dataclass(frozen=True)
class Decoding:
    """vae: makes an autoencoder. shape: of latents. factor: of their sides. given: latents as the pipeline takes them.
    told: other arguments. patch_size: of the transformer.
    """

    vae: Callable[[], Any]
    shape: tuple[int, ...]
    factor: int
    given: Callable[[Tensor], Tensor] = lambda latents: latents
    told: dict[str, Any] = field(default_factory=dict)
    patch_size: int | tuple[int, ...] = 1


def sd3_vae() -> Any:
    return make_vae(latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609)


POOLED = {"pooled_prompt_embeds": torch.zeros(2, 8)}
NEGATIVE = {"negative_prompt_embeds": torch.zeros(2, 3, 8)}
DECODINGS: dict[str, Decoding] = {
    "StableDiffusion3Pipeline": Decoding(
        sd3_vae, (16, *SHAPE), 2, told=POOLED | NEGATIVE | {"negative_pooled_prompt_embeds": torch.zeros(2, 8)}
    ),
    "FluxPipeline": Decoding(sd3_vae, (16, *SHAPE), 2, pack, POOLED),
    "Flux2Pipeline": Decoding(make_flux2_vae, (16, *SHAPE), 4),
    "QwenImagePipeline": Decoding(
        make_qwen_image_vae, (4, *SHAPE), 2, pack, {"prompt_embeds_mask": torch.ones(2, 3, dtype=torch.int64)}
    ),
    "WanPipeline": Decoding(make_wan_vae, (4, 3, *SHAPE), 4, told=NEGATIVE | {"num_frames": 9}, patch_size=(1, 2, 2)),
}


def decoded_by(name: str) -> tuple[Tensor, Tensor]:
    """Latents, and the images that a pipeline makes of them, in [-1, 1]: (B, C, H, W) or (B, C, F, H, W)."""
    decoding = DECODINGS[name]
    latents = torch.randn(2, *decoding.shape, generator=torch.Generator().manual_seed(3))
    kind = getattr(diffusers, name)
    parts = dict.fromkeys(part for part in kind.__init__.__annotations__)
    parts |= {
        "vae": decoding.vae(),
        "transformer": Still(decoding.patch_size),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
    }
    pipeline = kind(**{part: value for part, value in parts.items() if part != "return"})
    pipeline.set_progress_bar_config(disable=True)
    height, width = (decoding.factor * side for side in decoding.shape[-2:])
    images = pipeline(
        latents=decoding.given(latents), prompt_embeds=torch.zeros(2, 3, 8), height=height, width=width,
        num_inference_steps=1, output_type="pt", return_dict=False, **decoding.told,
    )[0]  # fmt: skip
    images = 2 * images - 1
    return latents, images.transpose(1, 2) if images.ndim == 5 else images
