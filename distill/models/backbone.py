"""What the pipeline asks of a model. `dar.SiT` is one; anything else that keeps to it is taken as well.

    model = SiT.from_pretrained(folder)      whatever its weights predict: `dar.predictions` turns it
    velocity = model(x_t, t, y)              x_t = (1 - t) x0 + t eps, velocity = eps - x0, t = 0 data, t = 1 noise

x0 and guidance are not the model's: `distill.sampling.guidance.Denoiser` makes them of the velocity of any backbone.
A new one is held to the protocol by `distill.conformance.check.check_backbone`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class Backbone(Protocol):
    """An `nn.Module` (it is moved, copied, trained and averaged as one) with these.

    gradient_checkpointing: set by trainings; a model without checkpointing may ignore it.
    """

    gradient_checkpointing: bool

    @property
    def null_label(self) -> int:
        """K, the class that stands for "no class"; classes are 0..K-1."""
        ...

    @property
    def t_range(self) -> tuple[float, float]:
        """The least and the largest t that the model is defined for, within (0, 1); it is never asked outside."""
        ...

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one sample."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity of each row for itself, in x_t's shape and type.

        Args:
            x_t: noisy samples (B, C, H, W).
            t: noise levels (B), one per row. y: classes (B), int64.

        Nothing in it may be random, in training mode either: dropping labels is the training's.
        """
        ...

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...

    def save_pretrained(self, folder: Path, /) -> Any:
        """Write a folder that loads as the same function, t_range and null_label included."""
        ...
