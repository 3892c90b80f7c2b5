"""What a teacher in training is aligned with (`repa`): an encoder's weights and passes, on the meta device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.config import RepaConfig
from distill.errors import UserError
from distill.metrics.classifier import Classifier
from distill.metrics.features import EMBEDDED_FOLDER, DinoExtractor, EmbeddedExtractor
from distill.planning.live_bytes import LiveBytes, as_on_a_gpu

STORED_WIDTH = 768  # of DINOv2-B, whose features most folders hold


@dataclass(frozen=True)
class Encoder:
    """extractor: without values. image_shape: (C, H, W) of what it reads."""

    extractor: Any
    image_shape: tuple[int, ...]

    @property
    def model(self) -> nn.Module:
        return self.extractor.model

    @property
    def width(self) -> int:
        """Of its tokens."""
        return self.extractor.token_width

    def forward(self) -> tuple[int, float]:
        """Bytes at the peak and operations of one row."""
        image = torch.empty(1, *self.image_shape, device="meta")
        with torch.no_grad(), as_on_a_gpu(), LiveBytes() as memory, FlopCounterMode(display=False) as flops:
            self.extractor.tokens(image)
        return memory.peak, flops.get_total_flops()


def encoder_of(repa: RepaConfig, image_shape: tuple[int, ...]) -> Encoder | None:
    """The encoder that is in memory beside the teacher; None of stored features and of `self`.

    Raises: UserError where its shape cannot be had.
    """
    if repa.encoder not in ENCODERS:
        return None
    try:
        return Encoder(ENCODERS[repa.encoder](repa.encoder_path), image_shape)
    except (OSError, ImportError) as error:
        raise UserError(f"repa.encoder = {repa.encoder}, repa.path = {repa.path}: its shape is not there") from error


def _dinov2(path: str | None) -> DinoExtractor:
    from transformers import AutoConfig, AutoModel, Dinov2Config

    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True)
    except OSError:
        if path != RepaConfig().encoder_path:
            raise
        config = Dinov2Config(image_size=518)  # all else is as in DINOv2-B
    with torch.device("meta"):
        return DinoExtractor(AutoModel.from_config(config), "meta")


def _embedded(path: str | None) -> EmbeddedExtractor:
    return EmbeddedExtractor(Classifier.from_pretrained(Path(path) if path else EMBEDDED_FOLDER), "meta")


ENCODERS = {"dinov2": _dinov2, "embedded": _embedded}
