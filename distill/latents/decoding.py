"""What makes images of a model's samples: nothing, where they are pixels, or an autoencoder.

One decoder is chosen at the start and applied where samples become images (`draw_images`, the grids of `train`);
images are clamped after that (`distill.render`).
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.latents.vae import IMAGE_CHANNELS, LatentSpace, load_vae


class Decoder(Protocol):
    """factor: pixels of an image per pixel of a sample, along a side. note: what it does, for people; "" for nothing."""

    factor: int
    note: str

    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, W), not clamped, of samples (B, c, h, w)."""
        ...

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H, W) of the images of samples (c, h, w). Raises: UserError where it decodes no such samples."""
        ...


class Pixels:
    """Samples that are images already."""

    factor = 1
    note = ""

    def decode(self, samples: Tensor) -> Tensor:
        return samples

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels, height, width = sample_shape
        if channels not in IMAGE_CHANNELS:
            raise UserError(
                f"the model makes latents of {channels} channels: give the autoencoder that decodes them, "
                "evaluate.vae or --vae (a folder, or a name such as stabilityai/sd-vae-ft-ema)"
            )
        return channels, height, width


PIXELS = Pixels()


class LatentPreview:
    """The first three channels of latents as colours, 3 standard deviations to either side: shapes, no true colours."""

    factor = 1
    note = "latents as they are, channels 0 to 2 as colours, since data.vae names no autoencoder"

    def decode(self, samples: Tensor) -> Tensor:
        return samples[:, :3] / 3

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels, height, width = sample_shape
        return min(channels, 3), height, width


def load_decoder(vae: str | None, device: torch.device) -> Decoder:
    """The decoder of a model whose samples are pixels (None) or an autoencoder's latents."""
    return load_vae(vae, device) if vae else PIXELS


def training_decoder(
    vae: str | None, sample_shape: tuple[int, ...], space: LatentSpace | None, device: torch.device
) -> Decoder:
    """The decoder of the grids of `train`, which needs no autoencoder: without one it shows the latents themselves.

    Args:
        sample_shape: of the data. space: that the data was cached in, where it is of latents and says so.

    Raises: UserError where the autoencoder is not the one that the data was cached with, by channels or scale.
    """
    if vae is None:
        return PIXELS if sample_shape[0] in IMAGE_CHANNELS else LatentPreview()
    decoder = load_vae(vae, device)
    decoder.image_shape(sample_shape)
    if space is not None and space != decoder.space:
        raise UserError(
            f"data.vae = {vae} has scale {decoder.space.scale:g}, shift {decoder.space.shift:g}; the latents in "
            f"data.path are read at scale {space.scale:g}, shift {space.shift:g}"
        )
    return decoder
