"""Decoders that turn a model's samples into images: the identity for pixels, or an autoencoder.

A program chooses one decoder at the start and applies it where samples become images (`draw_images`, the grids of
`train`). `distill.render` clamps the images afterwards.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.latents.vae import IMAGE_CHANNELS, LatentSpace, load_vae


class Decoder(Protocol):
    """factor: image pixels per sample pixel, along a side. note: what it does, to show to users; "" if nothing."""

    factor: int
    note: str

    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, W), not clamped, of samples (B, c, h, w)."""
        ...

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H, W) of the images for samples (c, h, w). Raises: UserError if it cannot decode such samples."""
        ...


class Pixels:
    """The decoder for samples that are already images."""

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
    """Shows the first three channels of latents as colours, from -3 to 3 standard deviations; colours are not true."""

    factor = 1
    note = "latents as they are, channels 0 to 2 as colours, since data.vae names no autoencoder"

    def decode(self, samples: Tensor) -> Tensor:
        return samples[:, :3] / 3

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels, height, width = sample_shape
        return min(channels, 3), height, width


def load_decoder(vae: str | None, device: torch.device) -> Decoder:
    """The decoder of a model whose samples are pixels (`vae` is None) or latents of an autoencoder."""
    return load_vae(vae, device) if vae else PIXELS


def training_decoder(
    vae: str | None, sample_shape: tuple[int, ...], space: LatentSpace | None, device: torch.device
) -> Decoder:
    """The decoder for the grids of `train`. Without an autoencoder it shows the latents themselves.

    Args:
        sample_shape: shape of one sample of the data.
        space: the latent space that the data set records for its latents; None if it records none or has no latents.

    Raises: UserError if the autoencoder differs in channels, scale or shift from the one that the data was cached with.
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
