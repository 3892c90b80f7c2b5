"""The autoencoders of diffusers: how the pipelines of each class go from images to latents and back.

To add one: a class here, an entry in `CODECS`, a test against the pipeline's own code.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from distill.errors import UserError
from distill.latents.space import LatentSpace

AUTOENCODERS = "diffusers.models.autoencoders"


class Codec(Protocol):
    """An autoencoder of one class.

    space: of its latents. factor: image pixels per latent pixel, along a side. in_channels, out_channels: of images.
    frames: of videos, how many a latent frame stands for; the first one stands for one alone. None for pictures.
    """

    space: LatentSpace
    factor: int
    frames: int | None
    in_channels: int
    out_channels: int

    def __init__(self, model: Any) -> None: ...

    def encode(self, images: Tensor) -> Tensor:
        """Mean and log-variance, (B, 2 channels, ..), neither scaled nor shifted, of images in [-1, 1]."""
        ...

    def decode(self, raw: Tensor) -> Tensor:
        """Images of latents without their scale and shift."""
        ...


class Kl:
    """AutoencoderKL: Stable Diffusion 1 to 3, Flux.1, DiT, PixArt.

    Its scale and shift are two numbers; where it has a mean and a standard deviation of each channel, they are taken as
    the pipeline of SDXL takes them.
    """

    frames: int | None = None

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        if config.latents_mean is not None and config.latents_std is not None:
            self.space = LatentSpace.normalised(config.latents_mean, config.latents_std, config.scaling_factor)
        else:
            self.space = LatentSpace(config.latent_channels, config.scaling_factor, config.shift_factor or 0.0)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.in_channels, self.out_channels = config.in_channels, config.out_channels

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.parameters

    def decode(self, raw: Tensor) -> Tensor:
        return self.model.decode(raw).sample


class Flux2:
    """AutoencoderKLFlux2: a latent pixel is 2 x 2 of the autoencoder's, their channels one after another, normalised by
    the statistics of its batch norm.
    """

    frames: int | None = None

    def __init__(self, model: Any) -> None:
        config = model.config
        if tuple(config.patch_size) != (2, 2):
            raise UserError(f"patch_size must be [2, 2], as in the pipeline of Flux.2; got {list(config.patch_size)}")
        self.model = model
        variance = model.bn.running_var.double() + config.batch_norm_eps
        self.space = LatentSpace.normalised(model.bn.running_mean.double().tolist(), variance.sqrt().tolist())
        self.factor = 2 ** len(config.block_out_channels)
        self.in_channels, self.out_channels = config.in_channels, config.out_channels

    def encode(self, images: Tensor) -> Tensor:
        return pixel_unshuffle(self.model.encode(images).latent_dist.parameters, 2)

    def decode(self, raw: Tensor) -> Tensor:
        return self.model.decode(pixel_shuffle(raw, 2)).sample


class Wan:
    """AutoencoderKLWan: videos (B, C, F, H, W), 1 + 4 (f - 1) frames for f of latents."""

    def __init__(self, model: Any) -> None:
        config = model.config
        patch = config.patch_size or 1  # of Wan 2.2's small model
        self.model = model
        self.space = LatentSpace.normalised(config.latents_mean, config.latents_std)
        self.factor = patch * 2 ** (len(config.dim_mult) - 1)
        self.frames = 2 ** sum(map(bool, config.temperal_downsample))
        self.in_channels, self.out_channels = config.in_channels // patch**2, config.out_channels // patch**2

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images).latent_dist.parameters

    def decode(self, raw: Tensor) -> Tensor:
        return self.model.decode(raw).sample


class QwenImage:
    """AutoencoderKLQwenImage: Wan's, which Qwen-Image takes for pictures, as videos of one frame."""

    frames: int | None = None

    def __init__(self, model: Any) -> None:
        config = model.config
        self.model = model
        self.space = LatentSpace.normalised(config.latents_mean, config.latents_std)
        self.factor = 2 ** (len(config.dim_mult) - 1)
        self.in_channels = self.out_channels = config.input_channels

    def encode(self, images: Tensor) -> Tensor:
        return self.model.encode(images.unsqueeze(2)).latent_dist.parameters.squeeze(2)

    def decode(self, raw: Tensor) -> Tensor:
        return self.model.decode(raw.unsqueeze(2)).sample.squeeze(2)


CODECS: dict[str, tuple[str, type[Codec]]] = {
    "AutoencoderKL": (f"{AUTOENCODERS}.autoencoder_kl", Kl),
    "AutoencoderKLFlux2": (f"{AUTOENCODERS}.autoencoder_kl_flux2", Flux2),
    "AutoencoderKLQwenImage": (f"{AUTOENCODERS}.autoencoder_kl_qwenimage", QwenImage),
    "AutoencoderKLWan": (f"{AUTOENCODERS}.autoencoder_kl_wan", Wan),
}
"""By the name of a class in diffusers: its module, which is imported when it is needed, and its codec."""
