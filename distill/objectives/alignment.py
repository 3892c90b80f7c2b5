"""Representation alignment of a teacher in training: REPA, arXiv:2410.06940, and SRA, which takes no encoder.

REPA  loss = mean over samples and places of 1 - cos(projector(h), z),   h the features of a block at x_t,
      z an encoder's of the clean sample; with spatial_norm g (iREPA): z <- (z - g mean_T z) / (std_T z + 1e-6)
SRA   loss = smooth L1 of projector(h) and the averaged model's features of a later block at t' = t - U(0, r)
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import RepaConfig
from distill.data import Dataset
from distill.data.configured import Flipped
from distill.data.features import StoredFeatures
from distill.errors import UserError
from distill.metrics.features import DinoExtractor, EmbeddedExtractor, load_extractor
from distill.models.backbone import Backbone, without
from distill.models.ema import Ema
from distill.sampling import interpolate
from distill.training.batches import rank_slice

HIDDEN = 2048  # of REPA's projector
EPSILON = 1e-6


class Aligned(nn.Module):
    """A backbone and the projector of one block's features: model(x_t, t, y) -> velocity, projected (B, T, D)."""

    def __init__(self, backbone: Backbone, repa: RepaConfig, width: int) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)
        self.block = repa.block
        num_tokens, hidden = cast(Any, backbone).feature_shape
        self.projector = PROJECTORS[repa.projector](hidden, width, math.isqrt(num_tokens))

    def forward(self, x_t: Tensor, t: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        velocity, (features,) = cast(Any, self.backbone).velocity_and_features(x_t, t, y, [self.block])
        return velocity, self.projector(features)


class Conv(nn.Module):
    """A 3 x 3 convolution over the places of tokens (B, T, d)."""

    def __init__(self, hidden: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.conv = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        maps = features.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.conv(maps).flatten(2).transpose(1, 2)


def _mlp(hidden: int, width: int, side: int) -> nn.Module:
    middle = min(HIDDEN, 8 * hidden)
    return nn.Sequential(
        nn.Linear(hidden, middle), nn.SiLU(), nn.Linear(middle, middle), nn.SiLU(), nn.Linear(middle, width)
    )


PROJECTORS = {"mlp": _mlp, "conv": Conv}


class Targets:
    """What features are aligned with.

    Args:
        repa: not of the encoder `self`.

    Raises: UserError where the encoder's weights or features cannot be had, or it does not read such data.
    """

    def __init__(self, repa: RepaConfig, data: Dataset, num_tokens: int, device: torch.device) -> None:
        self._repa, self._side, self._device = repa, math.isqrt(num_tokens), device
        self._stored = StoredFeatures(repa.path, len(data)) if repa.encoder == "stored" and repa.path else None
        self._encoder = None if self._stored else load_encoder(repa, data, device)

    @property
    def width(self) -> int:
        return self._stored.shape[1] if self._stored else cast(Any, self._encoder).token_width

    @torch.no_grad()
    def of(self, x0: Tensor, indices: Tensor) -> Tensor:
        """z (B, T, D) of samples x0, rows `indices` of the data, on the device."""
        stored = self._stored
        z = stored.rows(indices).to(self._device) if stored else cast(Any, self._encoder).tokens(x0)
        side = math.isqrt(z.shape[1])
        if side != self._side:
            maps = z.transpose(1, 2).unflatten(2, (side, side))
            maps = F.interpolate(maps, size=(self._side, self._side), mode="bilinear", antialias=True)
            z = maps.flatten(2).transpose(1, 2)
        return spatially_normed(z, self._repa.spatial_norm) if self._repa.spatial_norm else z


class Alignment:
    """The network that is aligned, and what each update needs for it.

    Raises: UserError as `check_blocks` and `Targets`, and where features of images do not fit mirrored ones.
    """

    def __init__(self, repa: RepaConfig, model: Backbone, data: Dataset, accelerator: Accelerator) -> None:
        check_blocks(model, repa)
        if repa.encoder == "stored" and isinstance(data, Flipped):
            raise UserError("repa.encoder = stored is of images as they are; data.flip mirrors them")
        if repa.encoder == "self" and accelerator.is_fsdp2:
            raise UserError("FSDP: repa.encoder = self asks the average, which is in shards; take an encoder")
        self.repa, self.accelerator = repa, accelerator
        num_tokens, hidden = cast(Any, model).feature_shape
        device = accelerator.device
        self._targets = None if repa.encoder == "self" else Targets(repa, data, num_tokens, device)
        self._width, self._tokens = self._targets.width if self._targets else hidden, num_tokens
        self._t_range = model.t_range
        self.network = Aligned(model, repa, self._width)
        self._average: Any = None

    def follow(self, ema: Ema) -> None:
        """The average, for `self`: its tensors are those that it is kept in."""
        if self._targets is None:
            self._average = ema.module.backbone

    def losses(self, projected: Tensor, z: Tensor) -> Tensor:
        """Of each sample, (B)."""
        return alignment_losses(projected, z) if self._targets else self_alignment_losses(projected, z)

    def draw(
        self, step: int, indices: Tensor, x0: Tensor, eps: Tensor, t: Tensor, y: Any, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """z (B, T, D), and what each sample's loss counts, (B): the coefficient, and nothing from `stop_at` on."""
        if self.repa.stop_at and step >= self.repa.stop_at:
            return x0.new_zeros(len(x0), self._tokens, self._width), x0.new_zeros(len(x0))
        weights = x0.new_full((len(x0),), self.repa.coefficient)
        if self._targets:
            return self._targets.of(x0, indices), weights
        size = len(x0) * self.accelerator.num_processes
        less = rank_slice(self.repa.less_noise * torch.rand(size, generator=generator), self.accelerator)
        t_less = (t - less).clamp(*self._t_range)
        with torch.no_grad(), self.accelerator.autocast():
            (z,) = self._average.features(interpolate(x0, eps, t_less), t_less, y, [self.repa.later_block])
        return z, weights


def load_encoder(repa: RepaConfig, data: Dataset, device: torch.device) -> DinoExtractor | EmbeddedExtractor:
    """Raises: UserError where its weights cannot be had, or it does not read such data."""
    if hasattr(data, "space"):
        raise UserError(
            f"repa.encoder = {repa.encoder} reads images, and the data are latents; take stored, with features that "
            "scripts/cache_features.py made of the images"
        )
    try:
        encoder = load_extractor(repa.encoder, repa.encoder_path, device=device)
    except FileNotFoundError as error:
        raise UserError(f"repa.encoder = {repa.encoder}: {error}") from error
    if not encoder.reads(tuple(data.sample_shape)):
        raise UserError(f"repa.encoder = {repa.encoder} does not read samples of {tuple(data.sample_shape)}")
    return cast(Any, encoder)


def spatially_normed(z: Tensor, share: float) -> Tensor:
    """(z - share mean_T z) / (std_T z + 1e-6): what places differ in, rather than what they have in common."""
    return (z - share * z.mean(1, keepdim=True)) / (z.std(1, keepdim=True) + EPSILON)


def alignment_losses(projected: Tensor, z: Tensor) -> Tensor:
    """mean over places of 1 - cos, (B)."""
    return (1 - F.cosine_similarity(projected.float(), z.float(), dim=-1)).mean(1)


def self_alignment_losses(projected: Tensor, z: Tensor) -> Tensor:
    """Smooth L1, mean over places and channels, (B)."""
    return F.smooth_l1_loss(projected.float(), z.float(), reduction="none").mean((1, 2))


def check_blocks(model: Any, repa: RepaConfig) -> None:
    """Raises: UserError for a backbone without features, or without such blocks."""
    if not hasattr(model, "velocity_and_features"):
        raise UserError(without(model, "velocity_and_features", "a section repa"))
    last = len(model.blocks) - 1
    for name in ("block", *(["later_block"] if repa.encoder == "self" else [])):
        if getattr(repa, name) > last:
            raise UserError(f"repa.{name} must come before the model's last block, {last}; got {getattr(repa, name)}")
