"""Small random autoencoders as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage, AutoencoderKLWan


def make_vae(*, levels: int = 2, seed: int = 0, **changes: Any) -> AutoencoderKL:
    """An AutoencoderKL that halves sides `levels` - 1 times, of 4 latent channels unless changed."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    return AutoencoderKL(**{**settings, **changes}).eval()


def save_vae(folder: Path, **changes: Any) -> Path:
    make_vae(**changes).save_pretrained(folder)
    return folder


def latent_statistics(channels: int) -> dict[str, list[float]]:
    """A mean and a standard deviation of each channel."""
    return {
        "latents_mean": [0.3 * i - 0.5 for i in range(channels)],
        "latents_std": [0.5 + 0.4 * i for i in range(channels)],
    }


def make_wan_vae(*, channels: int = 4, seed: int = 0, **changes: Any) -> AutoencoderKLWan:
    """Of videos: a quarter of each side, 1 + 4 (f - 1) frames."""
    torch.manual_seed(seed)
    settings = {"base_dim": 4, "z_dim": channels, "dim_mult": [1, 1, 1], "num_res_blocks": 1}
    settings |= {"temperal_downsample": [True, True], "scale_factor_spatial": 4} | latent_statistics(channels)
    return AutoencoderKLWan(**{**settings, **changes}).eval()


def make_qwen_image_vae(*, channels: int = 4, seed: int = 0) -> AutoencoderKLQwenImage:
    """Half of each side."""
    torch.manual_seed(seed)
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=channels, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True],
        **latent_statistics(channels),
    ).eval()  # fmt: skip


def make_flux2_vae(*, channels: int = 4, seed: int = 0, **changes: Any) -> AutoencoderKLFlux2:
    """A quarter of each side, 4 times the channels."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    model = AutoencoderKLFlux2(**{**settings, **changes}).eval()
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.2, 3)
    return model
