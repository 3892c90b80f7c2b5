"""Images to latents and back with diffusers' AutoencoderKL, the autoencoder ("VAE") of Stable Diffusion.

    latent = (raw - shift) scale,   raw = latent / scale + shift

raw is the output of the encoder; models are trained on latents. Decoding uses the autoencoder's scale and shift
(`scaling_factor` and `shift_factor` in its config.json). Reading a data set uses the values recorded when it was
cached, or those of SD-VAE if it has no record. `train` raises an error if the two differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dar.checkpoints.pickles import read_pickle
from distill.errors import UserError, reading

CONFIG_FILE = "config.json"
CLASS_NAME = "AutoencoderKL"
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PIXELS_AT_ONCE = 16 * 256 * 256  # image pixels per pass: about 4 GB of activations for SD-VAE in float32
IMAGE_CHANNELS = (1, 3)


@dataclass(frozen=True)
class LatentSpace:
    """Number of channels, scale and shift of latents; no other code applies scale and shift.

    The defaults are those of SD-VAE (stabilityai/sd-vae-ft-mse and -ema).

    Raises: UserError if channels, scale or shift are not valid.
    """

    channels: int = 4
    scale: float = 0.18215
    shift: float = 0.0

    def __post_init__(self) -> None:
        is_count = isinstance(self.channels, int) and self.channels >= 1
        if not is_count or not 0 < self.scale < math.inf or not math.isfinite(self.shift):
            raise UserError(f"latents need 1 channel or more, a scale above 0 and a finite shift; got {self}")

    def latents(self, raw: Tensor) -> Tensor:
        return (raw - self.shift) * self.scale

    def raw(self, latents: Tensor) -> Tensor:
        return latents / self.scale + self.shift


class Vae:
    """An autoencoder in eval mode, which is a decoder in the sense of `distill.latents.decoding`.

    Its weights and activations have the dtype `dtype`. Inputs and outputs are float32, and so are scale, exp and all
    later operations: in half precision the posterior's standard deviation would have only three digits.

    factor: image pixels per latent pixel, along a side.
    """

    def __init__(self, model: Any, name: str) -> None:
        config = model.config
        if config.latents_mean is not None or config.latents_std is not None:
            raise UserError(f"the autoencoder {name} scales every channel by itself (latents_mean); that is not read")
        self.space = LatentSpace(config.latent_channels, config.scaling_factor, config.shift_factor or 0.0)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.note = f"decoded by {name}, scale {self.space.scale:g}, shift {self.space.shift:g}"
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._in_channels, self._out_channels = config.in_channels, config.out_channels

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """The posterior's mean, then its standard deviation, (B, 2 channels, h, w), neither scaled nor shifted.

        Args:
            images: (B, C, H, W) in [-1, 1]; grey images are repeated to the channels of the autoencoder.

        Raises: UserError if the autoencoder does not take such images, or overflows in its dtype.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        self.latent_shape(tuple(images.shape[1:]))
        images = images.expand(-1, self._in_channels, -1, -1).to(self._model.device, self._model.dtype)
        parts = images.split(self._at_once(images.shape[-2] * images.shape[-1]))
        parameters = torch.cat([self._model.encode(part).latent_dist.parameters for part in parts])
        posterior = DiagonalGaussianDistribution(parameters.float())
        moments = torch.cat([posterior.mean, posterior.std], dim=1)
        if not torch.isfinite(moments).all():
            raise UserError(
                f"the autoencoder {self.name} gives values that are not finite in {self._model.dtype}; "
                "float32 and bfloat16 have the wider range"
            )
        return moments

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, channels, h, w); not clamped, on the autoencoder's device."""
        _, height, width = self.image_shape(tuple(samples.shape[1:]))
        raw = self.space.raw(samples.float()).to(self._model.device, self._model.dtype)
        return torch.cat([self._model.decode(part).sample.float() for part in raw.split(self._at_once(height * width))])

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(C, H, W) of the images for samples (channels, h, w). Raises: UserError if the number of channels differs."""
        channels, height, width = sample_shape
        if channels != self.space.channels:
            raise UserError(
                f"the model makes samples of {channels} channel{'s' if channels > 1 else ''}; the autoencoder "
                f"{self.name} decodes {self.space.channels}"
            )
        return self._out_channels, self.factor * height, self.factor * width

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(channels, h, w) of the latents for images (C, H, W). Raises: UserError if it cannot encode such images."""
        channels, height, width = image_shape
        if channels not in (1, self._in_channels):
            raise UserError(f"images have {channels} channels; the autoencoder {self.name} takes {self._in_channels}")
        if height % self.factor or width % self.factor:
            raise UserError(
                f"images are {height} x {width}; the autoencoder {self.name} takes multiples of {self.factor}"
            )
        return self.space.channels, height // self.factor, width // self.factor

    def save(self, folder: Path) -> None:
        """Write a folder that diffusers and `load_vae` read."""
        self._model.save_pretrained(folder)

    def fingerprint(self) -> str:
        """A hash of the weights: equal weights give an equal hash, whatever the file is called."""
        digest = hashlib.sha256()
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(key.encode() + value.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @staticmethod
    def _at_once(pixels: int) -> int:
        return max(1, PIXELS_AT_ONCE // pixels)


def load_vae(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Vae:
    """Load an autoencoder from a folder, or by its name from the hub's local cache. Nothing is downloaded.

    Raises: UserError, which says what to get and where to put it, or what is wrong with the files.
    """
    try:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.utils import logging
    except ImportError as error:
        raise UserError("an autoencoder needs diffusers: pip install 'dar-distill[latents]'") from error
    folder = find_vae(name)
    _check_class(folder)
    weights = next((file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise UserError(f"{folder} holds the config of an autoencoder but no {WEIGHTS_FILES[0]}")
    if weights != WEIGHTS_FILES[0]:
        read_pickle(folder / weights)  # raises where it asks to run code
    logging.set_verbosity_error()  # the checks below report what diffusers would warn about
    try:
        loaded: Any = AutoencoderKL.from_pretrained(
            str(folder),
            local_files_only=True,
            use_safetensors=weights == WEIGHTS_FILES[0],
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"the autoencoder in {folder} is damaged: {error}") from error
    model, found = loaded
    # diffusers initialises missing weights with random numbers.
    wrong = {kind: found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if found[kind]}
    if wrong:
        kind, keys = next(iter(wrong.items()))
        raise UserError(f"{folder / weights} does not fit its config: {kind.replace('_', ' ')} {', '.join(keys[:3])}")
    return Vae(model.to(device=device, dtype=dtype), name)


def find_vae(name: str) -> Path:
    """The folder that holds an autoencoder's config.json: `name`, its subfolder `vae` (in a pipeline), or either of
    them in the hub's cache.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, local_files_only=True))
        except HFValidationError as error:
            raise UserError(f"the autoencoder {name} is not a folder") from error
        except LocalEntryNotFoundError as error:
            raise UserError(
                f"the autoencoder {name} is neither a folder nor in the hub's cache {constants.HF_HUB_CACHE}: get it "
                f"with `hf download {name}`, or give a folder with {CONFIG_FILE} and {WEIGHTS_FILES[0]}"
            ) from error
    found = next((path for path in (folder / "vae", folder) if (path / CONFIG_FILE).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds no autoencoder: neither {CONFIG_FILE} nor vae/{CONFIG_FILE}")
    return found


def _check_class(folder: Path) -> None:
    """Check the class name, because diffusers would build an autoencoder from any config."""
    path = folder / CONFIG_FILE
    with reading(path, "is no config of an autoencoder"):
        class_name = json.loads(path.read_bytes()).get("_class_name")
    if class_name != CLASS_NAME:
        raise UserError(f"{path} is of {class_name or 'no class'}; an {CLASS_NAME} is read")
