"""How the forward of a stock transformer is called, by the name of its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor], float | None], Tensor]
"""(transformer, x_t (B, *sample_shape), t (B), conditions by name, guidance) -> output, in the shape of x_t."""


@dataclass(frozen=True)
class Stock:
    """An architecture.

    call: conditions have the names of the forward's arguments.
    sample_shape: of a configuration, (C, H, W) or (C, F, H, W) of the latents that the model was trained on last.
    conditions: the tensors that it is told, and where its configuration has their widths. masks: that it may be told.
    prediction: what the output is, a name of `dar.predictions`.
    guidance: what a model that embeds a guidance scale is told where nothing is said.
    num_classes: of a configuration, for a model of class labels.
    has_one_timestep_embedder: whether e(t) is made in one place, so that something can be added to it.
    """

    call: Call
    sample_shape: Callable[[Any], tuple[int, ...]]
    conditions: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[str, ...] = ()
    prediction: str = "velocity"
    guidance: float | None = None
    num_classes: Callable[[Any], int] | None = None
    has_one_timestep_embedder: bool = True


STOCK: dict[str, Stock] = {}


def register(class_name: str, **description: Any) -> Callable[[Call], Call]:
    """Make a function the call of all transformers of a class; `description` is the rest of `Stock`."""

    def add(call: Call) -> Call:
        if class_name in STOCK:
            raise ValueError(f"stock transformer {class_name!r} is registered twice")
        STOCK[class_name] = Stock(call, **description)
        return call

    return add


def pack(x: Tensor) -> Tensor:
    """Latents (B, C, H, W) to tokens (B, H W / 4, 4 C) of 2 x 2 cells, channel slowest, as Flux.1 and Qwen-Image do."""
    batch, channels, height, width = x.shape
    cells = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(batch, height // 2 * (width // 2), 4 * channels)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`, to the shape of `like`."""
    batch, channels, height, width = like.shape
    cells = tokens.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(batch, channels, height, width)


def square_of(config: Any) -> tuple[int, int, int]:
    """(C, H, W) of a configuration with `in_channels` and `sample_size`."""
    return config.in_channels, config.sample_size, config.sample_size
