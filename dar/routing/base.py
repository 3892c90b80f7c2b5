"""The protocol of the routing slot, its configuration and its registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from dar.chunks import ChunkSize
from dar.values import check_between, check_types

_CHOICES = {
    "query": ("static", "static_t", "dynamic"),
    "summary": ("sum", "last", "mean"),
    "scale": ("softmax", "count"),
    "mixing": ("free", "doubly_stochastic"),
}


@dataclass(frozen=True)
class RoutingConfig:
    """How sublayer inputs are made from earlier outputs.

    kind: "dar"; "attnres", "densenet", "unet_skip", "hyper"; "residual" (the plain running sum). A field
        below is without effect on the kinds that it does not name.
    query: of dar: "static" w_l; "static_t" w_l + e(t); "dynamic" W_l v_{l-1}, one query per token.
    chunk_size: of dar, attnres, densenet: sublayers per chunk, S (1 = dense); a list of chunk lengths; or
        "auto", S* = sqrt(L (1 - a) / (1 + a)) with a = 1/2.
    summary: of dar, densenet: what stands for a finished chunk: the "sum", "last" or "mean" of its outputs.
    scale: of dar: "softmax" (weights add up to 1) or "count" (times the number of sources: with zero
        queries and "sum" summaries this is the plain residual stream).
    anchor: of dar: keep the patch embedding outside the softmax, h_l = h_0 + sum alpha v.
    final: of dar, attnres, densenet: an aggregator in front of the head; without it the head reads the
        plain sum of all outputs.
    streams, mixing: of hyper: how many streams; "free" mixing of them (HC) or "doubly_stochastic" (mHC).
    """

    kind: str = "dar"
    query: str = "static_t"
    chunk_size: ChunkSize = 4
    summary: str = "sum"
    scale: str = "softmax"
    anchor: bool = False
    final: bool = True
    streams: int = 4
    mixing: str = "free"

    def __post_init__(self) -> None:
        check_types(self, "routing")
        if self.kind not in ROUTINGS:
            raise ValueError(f"routing.kind must be one of {', '.join(sorted(ROUTINGS))}; got {self.kind!r}")
        for field, allowed in _CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"routing.{field} must be one of {', '.join(allowed)}; got {value!r}")
        check_between(self, "routing", 2, 2**10, "streams")
        self._check_chunk_size()

    def _check_chunk_size(self) -> None:
        size = self.chunk_size
        if isinstance(size, (list, tuple)):  # a saved config.json holds a list
            object.__setattr__(self, "chunk_size", tuple(size))
        elif size != "auto" and type(size) is not int:  # True is one
            raise ValueError(f"routing.chunk_size must be a whole number, a list of them or auto; got {size!r}")
        lengths = tuple(size) if isinstance(size, (list, tuple)) else () if size == "auto" else (size,)
        for length in lengths:
            if type(length) is not int or length < 1:
                raise ValueError(f"routing.chunk_size must be at least 1 (1 = dense); got {length!r}")


class Stream(Protocol):
    """The state of one forward pass."""

    def read(self) -> Tensor:
        """The next sublayer's input (after the last write: the head's), shape (B, T, d)."""
        ...

    def write(self, output: Tensor) -> None:
        """The sublayer's output, gate included, shape (B, T, d)."""
        ...


class Routing(nn.Module, ABC):
    """A routing for `num_sublayers` sublayers of width `dim`.

    starts_as_residual: whether, at initialisation, every reader gets what the plain residual stream holds
        (up to rounding), so that a plain model keeps its function when it is given this routing.
    """

    starts_as_residual: bool = False

    def __init__(self, config: RoutingConfig, num_sublayers: int, dim: int) -> None:
        super().__init__()
        self.config = config
        self.num_sublayers = num_sublayers
        self.dim = dim

    @abstractmethod
    def open(self, embedding: Tensor, t_embedding: Tensor) -> Stream:
        """Begin a forward pass from the patch embedding (B, T, d) and the timestep embedding (B, d)."""


ROUTINGS: dict[str, type[Routing]] = {}


R = TypeVar("R", bound=type[Routing])


def register(name: str) -> Callable[[R], R]:
    """Make a routing selectable as `routing.kind = name`."""

    def add(cls: R) -> R:
        if name in ROUTINGS:
            raise ValueError(f"routing {name!r} is registered already, by {ROUTINGS[name].__name__}")
        ROUTINGS[name] = cls
        return cls

    return add


def build_routing(config: RoutingConfig, num_sublayers: int, dim: int) -> Routing:
    return ROUTINGS[config.kind](config, num_sublayers, dim)


def routing_config_from(value: Any) -> RoutingConfig:
    """A RoutingConfig from itself or from the dictionary that a saved config.json holds."""
    return value if isinstance(value, RoutingConfig) else RoutingConfig(**value)
