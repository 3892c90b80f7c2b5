"""What passes through the routing stream of a model, recorded or edited, without a trace in the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dar.diagnostics.views import View, view_of
from dar.routing import Stream
from dar.sit import SiT

WriteEdit = Callable[[int, Tensor], Tensor]
"""(number of the sublayer from 1, its output (B, T, d)) -> what is written instead."""


@dataclass
class Record:
    """The last forward pass inside `capture`, as tensors (B, T, d) that are still part of the autograd graph.

    embedding: v_0. reads: what sublayers 1..L read, then who comes after them. writes: v_1..v_L, as written.
    stream: the routing's own, for what else it keeps (`weights`, say); None before the first pass.
    """

    per_block: int
    embedding: Tensor | None = None
    reads: list[Tensor] = field(default_factory=list)
    writes: list[Tensor] = field(default_factory=list)
    stream: Any = None

    @property
    def hidden(self) -> list[Tensor]:
        """z_0..z_K: what the first sublayer of block k + 1 reads, and what is read after the last."""
        return self.reads[:: self.per_block]

    @property
    def block_writes(self) -> list[Tensor]:
        """The last that each block writes: v_2, v_4, .., v_2K in a SiT."""
        return self.writes[self.per_block - 1 :: self.per_block]


class _RecordedStream:
    """Stands between the backbone and the routing's stream; what else is asked of it, the stream answers."""

    def __init__(self, stream: Stream, record: Record, edit: WriteEdit) -> None:
        self._stream = stream
        self._record = record
        self._edit = edit
        self._change: Tensor | None = None  # of the plain stream, by all edits so far

    def read(self, base: Tensor | None = None) -> Tensor:
        """base: the plain stream, from who holds it, and holds in it what was written before the edits."""
        if base is None:
            h = self._stream.read()
        else:
            h = self._stream.read(base if self._change is None else base + self._change)  # pyright: ignore[reportCallIssue]
        self._record.reads.append(h)
        return h

    def write(self, output: Tensor) -> None:
        edited = self._edit(len(self._record.writes) + 1, output)
        if edited is not output:
            change = (edited - output).detach()
            self._change = change if self._change is None else self._change + change
        self._record.writes.append(edited)
        self._stream.write(edited)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def unedited(sublayer: int, output: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return output


def without(removed: int) -> WriteEdit:
    """The edit that writes zeros in place of the output of sublayer `removed`, counted from 1."""
    return lambda sublayer, output: output.new_zeros(output.shape) if sublayer == removed else output


@contextlib.contextmanager
def capture(model: SiT | View, edit: WriteEdit = unedited) -> Iterator[Record]:
    """Record every read and write of the stream in forward passes of `model`, and edit what is written.

    An edited output is what everybody sees of it: later readers of the stream, and who goes on with the stream.

    Each pass begins the record anew. The model is as before once the context is left, by an exception or not;
    contexts can be nested.
    """
    view = view_of(model)
    routing = view.routing
    attributes = vars(routing)
    record = Record(view.per_block)
    opened_by, shadowed = routing.open, attributes.get("open")

    def open_recorded(embedding: Tensor, t_embedding: Tensor, **options: Any) -> Any:
        record.embedding, record.reads, record.writes = embedding, [], []
        record.stream = opened_by(embedding, t_embedding, **options)
        return _RecordedStream(record.stream, record, edit)

    attributes["open"] = open_recorded
    try:
        yield record
    finally:
        del attributes["open"]
        if shadowed is not None:  # by a context around this one
            attributes["open"] = shadowed
