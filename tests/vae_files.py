"""Small random autoencoders as diffusers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL


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
