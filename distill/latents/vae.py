"""Images to latents and back with the autoencoders ("VAE") of diffusers, which are listed in `codecs.py`.

Decoding uses the autoencoder's own scale and shift. Reading a data set uses the values recorded when it was cached, or
those of SD-VAE if it has no record. `train` raises an error if the two differ.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dar.checkpoints.pickles import read_pickle
from distill.errors import UserError
from distill.latents.codecs import CODECS
from distill.latents.space import LatentSpace

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PIXELS_AT_ONCE = 16 * 256 * 256  # image pixels per pass: about 4 GB of activations for SD-VAE in float32
IMAGE_CHANNELS = (1, 3)


class Vae:
    """An autoencoder in eval mode, which is a decoder in the sense of `distill.latents.decoding`.

    Its weights and activations have the dtype `dtype`. Inputs and outputs are float32, and so are scale, exp and all
    later operations: in half precision the posterior's standard deviation would have only three digits.

    factor: image pixels per latent pixel, along a side.
    """

    def __init__(self, model: Any, name: str) -> None:
        _, codec = CODECS[type(model).__name__]
        self._codec = codec(model)
        self.space: LatentSpace = self._codec.space
        self.factor: int = self._codec.factor
        self.note = f"decoded by {name}, {self.space}"
        self.name = name
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """The posterior's mean, then its standard deviation, (B, 2 channels, ..), neither scaled nor shifted.

        Args:
            images: (B, C, H, W) or (B, C, F, H, W) in [-1, 1]; grey ones are repeated to the autoencoder's channels.

        Raises: UserError if the autoencoder does not take such images, or overflows in its dtype.
        """
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        self.latent_shape(tuple(images.shape[1:]))
        channels = self._codec.in_channels
        images = images.expand(-1, channels, *images.shape[2:]).to(self._model.device, self._model.dtype)
        parts = images.split(self._at_once(tuple(images.shape[2:])))
        posterior = DiagonalGaussianDistribution(torch.cat([self._codec.encode(part) for part in parts]).float())
        moments = torch.cat([posterior.mean, posterior.std], dim=1)
        if not torch.isfinite(moments).all():
            raise UserError(
                f"the autoencoder {self.name} gives values that are not finite in {self._model.dtype}; "
                "float32 and bfloat16 have the wider range"
            )
        return moments

    @torch.no_grad()
    def decode(self, samples: Tensor) -> Tensor:
        """Images (B, C, H, W) of latents (B, channels, h, w), videos (B, C, F, H, W) of (B, channels, f, h, w).

        They are not clamped, and on the autoencoder's device.
        """
        _, *sides = self.image_shape(tuple(samples.shape[1:]))
        raw = self.space.raw(samples.float()).to(self._model.device, self._model.dtype)
        return torch.cat([self._codec.decode(part).float() for part in raw.split(self._at_once(sides))])

    def image_shape(self, sample_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the images for samples (channels, h, w) or (channels, f, h, w).

        Raises: UserError if it does not decode such samples.
        """
        channels, *frames, height, width = sample_shape
        if channels != self.space.channels:
            raise UserError(
                f"the model makes samples of {channels} channel{'s' if channels > 1 else ''}; the autoencoder "
                f"{self.name} decodes {self.space.channels}"
            )
        self._check_frames(len(frames), "the model makes")
        frames = [1 + self._frames * (number - 1) for number in frames]
        return self._codec.out_channels, *frames, self.factor * height, self.factor * width

    def latent_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the latents for images (C, H, W) or (C, F, H, W).

        Raises: UserError if it cannot encode such images.
        """
        channels, *frames, height, width = image_shape
        if channels not in (1, self._codec.in_channels):
            raise UserError(
                f"images have {channels} channels; the autoencoder {self.name} takes {self._codec.in_channels}"
            )
        self._check_frames(len(frames), "these are")
        if height % self.factor or width % self.factor:
            raise UserError(
                f"images are {height} x {width}; the autoencoder {self.name} takes multiples of {self.factor}"
            )
        if any((number - 1) % self._frames for number in frames):
            raise UserError(
                f"videos have {frames[0]} frames; the autoencoder {self.name} takes 1 more than a multiple of "
                f"{self._frames}"
            )
        frames = [1 + (number - 1) // self._frames for number in frames]
        return self.space.channels, *frames, height // self.factor, width // self.factor

    @property
    def _frames(self) -> int:
        return self._codec.frames or 1

    def _check_frames(self, num_axes: int, whose: str) -> None:
        if num_axes != (self._codec.frames is not None):
            these, those = ("videos", "pictures") if num_axes else ("pictures", "videos")
            raise UserError(f"{whose} {these}; the autoencoder {self.name} is of {those}")

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
    def _at_once(sides: Sequence[int]) -> int:
        return max(1, PIXELS_AT_ONCE // math.prod(sides))


def load_vae(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Vae:
    """Load an autoencoder from a folder, or by its name from the hub's local cache. Nothing is downloaded.

    Raises: UserError, which says what to get and where to put it, or what is wrong with the files.
    """
    try:
        from diffusers.utils import logging

        folder = find_vae(name)
        class_name = _class_of(folder)
        autoencoder = getattr(import_module(CODECS[class_name][0]), class_name)
    except ImportError as error:
        raise UserError("an autoencoder needs diffusers: pip install 'dar-distill[latents]'") from error
    weights = next((file for file in WEIGHTS_FILES if (folder / file).is_file()), None)
    if weights is None:
        raise UserError(f"{folder} holds the config of an autoencoder but no {WEIGHTS_FILES[0]}")
    if weights != WEIGHTS_FILES[0]:
        read_pickle(folder / weights)  # raises where it asks to run code
    logging.set_verbosity_error()  # the checks below report what diffusers would warn about
    try:
        loaded: Any = autoencoder.from_pretrained(
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
    try:
        vae = Vae(model, name)  # before its numbers are rounded to `dtype`
    except UserError as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error
    model.to(device=device, dtype=dtype)
    return vae


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


def _class_of(folder: Path) -> str:
    """The class that a config names; it is checked, because diffusers would build an autoencoder from any config."""
    path = folder / CONFIG_FILE
    try:
        class_name = json.loads(path.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is no config of an autoencoder: {error}") from error
    if class_name not in CODECS:
        raise UserError(f"{path} is of {class_name or 'no class'}; autoencoders are read of {', '.join(CODECS)}")
    return class_name
