"""The interface that the pipeline needs from a model. `dar.SiT` has it; any other model that has it works too.

    model = load_model(folder)               the weights may predict eps, x0 or velocity: `dar.predictions` converts
    velocity = model(x_t, t, y)              x_t = (1 - t) x0 + t eps, velocity = eps - x0, t = 0 data, t = 1 noise

A model does not compute x0 or guidance: `distill.sampling.Denoiser` computes both from the velocity of any backbone.
`distill.conformance.check_backbone` checks that a new model has this interface, and a family
(`distill.models.families`) loads its folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn


class Backbone(Protocol):
    """An `nn.Module` (it is moved, copied, trained and averaged as one) with these members.

    gradient_checkpointing: set by training; a model without checkpointing may ignore it.

    What some objectives need beside: `t_embedding_size` d, and an argument `t_offset` (B, d) of the call, added to the
    embedding of t (a critic that is told the step); `features(x_t, t, y, after)`, what is read after so many `blocks`,
    (B, T, d) each, and its `feature_shape` (T, d) (a discriminator). For FSDP: `block_classes`, names of the classes of
    its blocks, each of which is gathered by itself. For LoRA: `routing`, and `adapted_layers`, a pattern of names.

    The model may have an attribute `condition`, a `distill.conditions.Condition`, which says what `y` is. A model with
    `null_label` instead takes class labels below it, and `null_label` itself for the unconditional case.
    """

    gradient_checkpointing: bool

    @property
    def t_range(self) -> tuple[float, float]:
        """The smallest and largest t that the model is defined for, within (0, 1). It is never called outside."""
        ...

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of pixels or latents."""
        ...

    def __call__(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        """The velocity, in the shape and dtype of x_t. Each row is computed independently of the others.

        Args:
            x_t: noisy samples (B, *sample_shape).
            t: noise levels (B), one per row.
            y: a batch of conditions, B rows.

        The call must be deterministic, in training mode too: the training code drops labels, not the model.
        """
        ...

    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...

    def to(self, device: torch.device | str, /) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...

    def save_pretrained(self, folder: Path, /) -> Any:
        """Write a folder that loads as the same function, including its t_range and condition."""
        ...


def without(model: object, what: str, needed_by: str) -> str:
    """That a model lacks what something needs, in words."""
    return f"{needed_by} needs a backbone with {what}; {type(model).__name__} has none"


def patch_size_of(model: Any) -> int:
    """Patch size of a transformer, in pixels of a sample along a side; 1 if it has none."""
    return getattr(model, "patch_size", getattr(getattr(model, "config", None), "patch_size", 1))
