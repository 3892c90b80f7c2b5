"""Alignment of a teacher's inner features, in `train`."""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.checks import at_least, one_of, within
from distill.errors import UserError


@dataclass
class RepaConfig:
    """Representation alignment (REPA, arXiv:2410.06940): features of a block come to agree with an encoder's.

    encoder: `dinov2` (by transformers; `path` a folder or a Hub name, null for DINOv2-B), `embedded` (the shipped
        classifier), `stored` (`path` a folder that scripts/cache_features.py made, for latents), or `self`: no encoder,
        the average of the model itself at a later block and less noise (SRA).
    block: after so many blocks. coefficient: of the loss. projector: `mlp` of three layers, or `conv`, 3 x 3 (iREPA).
    spatial_norm: how much of their mean over places the encoder's features lose, before their spread is made one
        (iREPA: .6 to .8); 0 leaves them. stop_at: the update from which on nothing is aligned (HASTE); 0 for never.
    later_block, less_noise: of `self`: the block of the average, and t - U(0, less_noise).
    """

    encoder: str = "dinov2"
    path: str | None = None
    block: int = 8
    coefficient: float = 0.5
    projector: str = "mlp"
    spatial_norm: float = 0.0
    stop_at: int = 0
    later_block: int = 20
    less_noise: float = 0.2

    @property
    def encoder_path(self) -> str | None:
        """Where the encoder's weights are; None for the one that is shipped."""
        return self.path or ("facebook/dinov2-base" if self.encoder == "dinov2" else None)

    def __post_init__(self) -> None:
        one_of(self, "repa", "encoder", ("dinov2", "embedded", "stored", "self"))
        one_of(self, "repa", "projector", ("mlp", "conv"))
        at_least(self, "repa", 0, "coefficient", "stop_at")
        at_least(self, "repa", 1, "block", "later_block")
        within(self, "repa", 0, 1, "spatial_norm", "less_noise")
        if self.encoder == "stored" and self.path is None:
            raise UserError("repa.encoder = stored needs repa.path, a folder that scripts/cache_features.py made")
