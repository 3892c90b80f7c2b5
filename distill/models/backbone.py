"""What the pipeline needs of a model. `dar.SiT` is one; any other with this interface works as well.

    model = load_model(folder)               whatever its weights predict: `dar.predictions` turns it
    velocity = model(x_t, t, y)              x_t = (1 - t) x0 + t eps, velocity = eps - x0, t = 0 data, t = 1 noise

x0 and guidance are not the model's: `distill.sampling.Denoiser` makes them of the velocity of any backbone. A new
one is held to the protocol by `distill.conformance.check_backbone`, and its folders are read by a family
(`distill.models.families`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class Backbone(Protocol):
    """An `nn.Module` (it is moved, copied, trained and averaged as one) with these.

    gradient_checkpointing: set by trainings; a model without checkpointing may ignore it.

    What it is conditioned on is its attribute `condition`, a `distill.conditions.Condition`. One that has `null_label`
    instead takes class labels below that, and that label for none.
    """

    gradient_checkpointing: bool

    @property
    def t_range(self) -> tuple[float, float]:
        """The least and the largest t that the model is defined for, within (0, 1); it is never asked outside."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one sample: (C, H, W) of pixels or latents."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        """The velocity of each row for itself, in x_t's shape and type.

        Args:
            x_t: noisy samples (B, *sample_shape).
            t: noise levels (B), one per row. y: a batch of its condition, B rows.

        Nothing in it may be random, in training mode either: dropping labels is the training's.
        """
        ...

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...

    def to(self, device: torch.device | str, /) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...

    def save_pretrained(self, folder: Path, /) -> Any:
        """Write a folder that loads as the same function, t_range and condition included."""
        ...


def patch_size_of(model: Any) -> int:
    """Side of the patches that a transformer makes tokens of, in pixels of a sample; 1 where its config says none."""
    return getattr(getattr(model, "config", None), "patch_size", 1)
