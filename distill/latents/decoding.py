"""Decoders that turn a model's samples into images: the identity for pixels, or an autoencoder.

A program chooses one decoder at the start and applies it where samples become images (`draw_images`, the grids of
`train`). `distill.render` clamps the images afterwards.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.errors import UserError
from distill.latents.space import LatentSpace
from distill.latents.vae import IMAGE_CHANNELS, load_vae


class Decoder(Protocol):
    """factor: image pixels per sample pixel, along a side. note: what it does, to show to users; "" if nothing.

    Images may be videos (B, C, F, H, W); `distill.render` and `distill.metrics.images` take them apart into frames.
    """

    factor: int
    note: str

    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, W), not clamped, of samples (B, c, h, w); videos (B, C, F, H, W) of (B, c, f, h, w)."""
        ...

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """(C, H, W) of the images for samples (c, h, w), (C, F, H, W) of videos for (c, f, h, w).

        Raises: UserError if it cannot decode such samples.
        """
        ...


class Pixels:
    """The decoder for samples that are already images."""

    factor = 1
    note = ""

    def decode(self, samples: Tensor) -> Tensor:
        return samples

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sample_shape)


PIXELS = Pixels()


class LatentPreview:
    """Shows the first channels of latents as colours, from -3 to 3 standard deviations; colours are not true."""

    factor = 1
    note = (
        "latents as they are, the first channels as colours, since no autoencoder is given (--vae, evaluate.vae or "
        "data.vae: a folder, or a name such as stabilityai/sd-vae-ft-ema)"
    )

    def decode(self, samples: Tensor) -> Tensor:
        return samples[:, : self._channels(samples.shape[1])] / 3

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, *sides = sample_shape
        return self._channels(channels), *sides

    @staticmethod
    def _channels(channels: int) -> int:
        return 3 if channels >= 3 else 1


def decoder_for(vae: str | None, sample_shape: tuple[int, ...], device: torch.device) -> Decoder:
    """The decoder of samples (c, h, w) or (c, f, h, w): an autoencoder, or the samples as they are.

    Raises: UserError if the autoencoder does not decode such samples.
    """
    if vae is None:
        return PIXELS if sample_shape[0] in IMAGE_CHANNELS else LatentPreview()
    decoder = load_vae(vae, device)
    decoder.image_shape(sample_shape)
    return decoder


def training_decoder(
    vae: str | None, sample_shape: tuple[int, ...], space: LatentSpace | None, device: torch.device
) -> Decoder:
    """The decoder for the grids of `train`. Without an autoencoder it shows the latents themselves.

    Args:
        sample_shape: shape of one sample of the data.
        space: the latent space that the data set records for its latents; None if it records none or has no latents.

    Raises: UserError if the autoencoder differs in channels, scale or shift from the one that the data was cached with.
    """
    decoder = decoder_for(vae, sample_shape, device)
    own: LatentSpace | None = getattr(decoder, "space", None)
    if space is not None and own is not None and space != own:
        raise UserError(f"data.vae = {vae} has {own}; the latents in data.path are read at {space}")
    return decoder
