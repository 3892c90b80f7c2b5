"""What was written to a stream, as far as it can be seen from outside of a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dar.routing import DepthRouting, DepthStream


class StreamPass(ABC):
    """One stream (B, T, d) in one forward pass.

    t_embedding: gives e(t), (B, d), from the second reader on. taped: as `DepthRouting.open` takes it.
    """

    def __init__(self, routing: DepthRouting, t_embedding: Callable[[], Tensor], *, taped: bool) -> None:
        self._routing = routing
        self._t_embedding = t_embedding
        self._taped = taped
        self._embedding: Tensor | None = None
        self._began = False
        self._depth: DepthStream | None = None

    @property
    def weights(self) -> list[Tensor]:
        """What each reader so far gave its sources, (N, B, T) each."""
        if self._depth is None:  # one source, of which a reader takes all
            return [] if self._embedding is None else [self._embedding.new_ones(1, *self._embedding.shape[:2])]
        return self._depth.weights

    def copy(self) -> StreamPass:
        """The pass as it is now, which goes on by itself."""
        twin = copy.copy(self)
        twin._depth = self._depth and self._depth.copy()
        return twin

    def read(self, z: Tensor) -> Tensor:
        """What the next reader reads in place of z (B, T, d); a head may be given the last tokens."""
        if not self._began:
            self._began = True
            return self._first(z)
        written, base = self._since(z)
        if self._depth is None:
            assert self._embedding is not None
            self._depth = self._routing.open(self._embedding, self._t_embedding(), taped=self._taped)
            self._depth.read()  # by the first reader, which had one source and no choice
        self._depth.write(written)
        return self._depth.read(base)[:, -z.shape[1] :]

    @abstractmethod
    def _first(self, z: Tensor) -> Tensor:
        """The embedding, which the first reader reads."""

    @abstractmethod
    def _since(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """What was written since the last reader, and the stream itself as it is now, if that is known."""


class Differences(StreamPass):
    """v_l = z_l - z_{l-1}."""

    def __init__(self, routing: DepthRouting, t_embedding: Callable[[], Tensor], *, taped: bool) -> None:
        super().__init__(routing, t_embedding, taped=taped)
        self._seen: Tensor | None = None

    def _first(self, z: Tensor) -> Tensor:
        self._embedding = self._seen = z
        return z

    def _since(self, z: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen
        assert seen is not None
        if z.shape[1] < seen.shape[1]:  # of the other tokens nothing more is asked
            z = torch.cat([seen[:, : seen.shape[1] - z.shape[1]], z], dim=1)
        self._seen = z
        return z - seen, z.detach()


class Written(StreamPass):
    """v_l from blocks that are handed zeros."""

    def __init__(self, routing: DepthRouting, t_embedding: Callable[[], Tensor], *, taped: bool) -> None:
        super().__init__(routing, t_embedding, taped=taped)
        self._entered: Sequence[Tensor] = ()
        self._seen: Tensor | None = None  # what the block had written by its last reader; None for nothing
        self._left: Tensor | None = None  # what the last block wrote after its last reader

    def enter(self, parts: Sequence[Tensor]) -> None:
        """A block begins that is handed zeros for `parts` of the stream, side by side in T."""
        self._entered = parts
        if self._embedding is None:
            self._embedding = torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]

    def leave(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """It has ended with `parts` of what it wrote; returns the stream."""
        written = torch.cat(list(parts), dim=1) if len(parts) > 1 else parts[0]
        self._left = written if self._seen is None else written - self._seen
        self._seen = None
        return [z + part for z, part in zip(self._entered, parts, strict=True)]

    def _first(self, z: Tensor) -> Tensor:
        assert self._embedding is not None
        return self._embedding

    def _since(self, z: Tensor) -> tuple[Tensor, None]:
        if self._left is not None:  # the first reader in a block, or the head
            written, self._left = self._left, None
            return written, None
        written, self._seen = (z if self._seen is None else z - self._seen), z
        return written, None


SOURCES: dict[str, type[StreamPass]] = {"differences": Differences, "written": Written}
