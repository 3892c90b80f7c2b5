"""What an architecture says of itself, and the registry, by the name of the model's class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Carried = tuple[tuple[str, str], ...]
"""What a block takes and hands on: (argument, stream), in the order of its outputs."""


@dataclass(frozen=True)
class StreamNorms:
    """The modules through which sublayers read a stream (B, T, d), by their names in the model, in order of depth.

    norms: each is called once in a forward pass, with the stream first. What is added to the stream between two of
        them counts as one sublayer.
    head: the norm in front of the head, if this stream has one. It may read the last tokens only.
    leaves: of a stream without a head, the block behind which others go on with it; None where its last reader ends it.
    sublayers: what the norms of a block feed, in order.
    """

    norms: tuple[str, ...]
    head: str | None = None
    leaves: str | None = None
    sublayers: tuple[str, ...] = ("attn", "mlp")


@dataclass(frozen=True)
class Architecture:
    """A transformer whose sublayers read its streams through norms alone.

    streams: by name.
    timestep: name of the module that gives e(t), (B, d); where it is called several times, the first counts.
    blocks: what each block carries, by name. Empty where a sublayer reads the stream past the norms: then what a block
        writes cannot be told apart by handing it zeros.
    """

    streams: Mapping[str, StreamNorms]
    timestep: str
    blocks: Mapping[str, Carried] = field(default_factory=dict)


Describe = Callable[[Any], Architecture]
ARCHITECTURES: dict[str, Describe] = {}


def register_architecture(class_name: str) -> Callable[[Describe], Describe]:
    """Make a function of a model the description of all models of a class, which need not be installed."""

    def add(describe: Describe) -> Describe:
        if class_name in ARCHITECTURES:
            raise ValueError(f"architecture {class_name!r} is registered twice")
        ARCHITECTURES[class_name] = describe
        return describe

    return add


def architecture_of(model: nn.Module) -> Architecture:
    """Raises: ValueError for a class that is not known, which names the norms that were found in the model."""
    describe = ARCHITECTURES.get(type(model).__name__)
    if describe is not None:
        return describe(model)
    norms = [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    shown = f"its norms are {', '.join(norms[:8])}{', ..' if len(norms) > 8 else ''}" if norms else "it has no norms"
    raise ValueError(
        f"{type(model).__name__} is no known architecture ({', '.join(sorted(ARCHITECTURES))}); {shown}; "
        "a file in dar/architectures says which of them read the stream"
    )


def norms_of(blocks: str, count: int, *norms: str) -> tuple[str, ...]:
    """`norms` of blocks.0, blocks.1, .. in order of depth."""
    return tuple(f"{blocks}.{i}.{norm}" for i in range(count) for norm in norms)


def all_carry(blocks: str, count: int, *carried: tuple[str, str]) -> dict[str, Carried]:
    """blocks.0, blocks.1, .. which all carry the same."""
    return {f"{blocks}.{i}": carried for i in range(count)}
