"""What the measures see of a model: one residual stream, and how the model is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dar.architectures import StreamNorms, architecture_of
from dar.attached import attach_routing, detach_routing, routing_of
from dar.diagnostics.readers import SUBLAYERS, Reader, readers_of, sublayer_name
from dar.routing import DepthRouting, Routing, RoutingConfig
from dar.sit import SiT

STAND_IN = RoutingConfig(scale="count", chunk_size="auto")
"""Leaves what a stock transformer computes as it is, to the bit."""


@dataclass(frozen=True, eq=False)
class View:
    """One residual stream of a model.

    model: called as velocity = model(x_t, t, y); stream: its name in it.
    routing: of the stream. readers: those of it that choose; none where it is a stand-in.
    sublayers: names of a block's, in order. num_sublayers: L, those whose output is read in this stream.
    parameters: the model's own.
    """

    model: Any
    stream: str
    routing: Routing
    readers: Sequence[Reader]
    sublayers: tuple[str, ...]
    num_sublayers: int
    parameters: Sequence[nn.Parameter]

    def __call__(self, x_t: Tensor, t: Tensor, y: Any) -> Tensor:
        return self.model(x_t, t, y)

    @property
    def per_block(self) -> int:
        return len(self.sublayers)

    @property
    def num_blocks(self) -> int:
        """K, whole ones."""
        return self.num_sublayers // self.per_block

    @property
    def device(self) -> torch.device:
        return self.parameters[0].device

    def sublayer_names(self) -> list[str]:
        return [sublayer_name(i, self.num_sublayers, self.sublayers) for i in range(1, self.num_sublayers + 1)]


def view_of(model: SiT | View) -> View:
    """That of a SiT; a view is its own."""
    if isinstance(model, View):
        return model
    num_sublayers = 2 * model.config.depth
    readers = readers_of(model.routing)
    return View(model, "", model.routing, readers, SUBLAYERS, num_sublayers, list(model.parameters()))


@contextmanager
def views_of(model: Any) -> Iterator[list[View]]:
    """The streams of a model, those that are at least a block deep.

    Within the context a stock transformer without routing has one that is only looked through.

    Args:
        model: a SiT, or one that calls a stock `transformer` of diffusers, with attached routing or without.

    Raises: ValueError for another model, or an architecture that is not known.
    """
    if isinstance(model, SiT):
        yield [view_of(model)]
        return
    transformer = getattr(model, "transformer", None)
    if transformer is None:
        raise ValueError(f"a {type(model).__name__} cannot be looked into; a SiT and transformers of diffusers can")
    parameters, is_plain = list(model.parameters()), not hasattr(transformer, "routing")
    if is_plain:
        attach_routing(transformer, STAND_IN)
    try:
        yield _stream_views(model, parameters, is_plain)
    finally:
        if is_plain:
            detach_routing(transformer)


def _stream_views(model: Any, parameters: Sequence[nn.Parameter], is_plain: bool) -> list[View]:
    streams = architecture_of(model.transformer).streams
    views = []
    for name, module in routing_of(model.transformer).streams.items():
        routing, norms = cast(DepthRouting, module), streams[name]
        readers = [] if is_plain else readers_of(routing, norms.sublayers)
        num_sublayers = _num_read(norms)
        views.append(View(model, name, routing, readers, norms.sublayers, num_sublayers, parameters))
    return [view for view in views if view.num_blocks]


def _num_read(norms: StreamNorms) -> int:
    """What the last norm of a stream feeds that nobody goes on with is not read in it."""
    return len(norms.norms) if norms.head or norms.leaves else len(norms.norms) - 1
