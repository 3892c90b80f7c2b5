"""All routers of one forward pass whose queries are known beforehand, in two phases.

Readers are taken in blocks. When the first of a block asks, the sources that are there by then are read once for
the whole block (`forward.begin`); each reader adds what has come since (`forward.finish`). What a backward pass
needs stays on the tape: sources, logits and lse. Mixtures are autograd's to keep (`dar.trunk`).

Legend: B samples, T tokens, d width, R readers, W slots of a block. A slot is a place for a reader; blocks are of
one width, so that some may stay empty. The position of a source is its place among those of a reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from dar.kernels import in_kernel_dtype
from dar.kernels.forward import State, begin, finish


class Slots:
    """The slots of readers 1, 2, .., R, who come in `blocks`."""

    def __init__(self, blocks: Sequence[range]) -> None:
        self.width = max(map(len, blocks))
        self.block_of = {reader: block for block in blocks for reader in block}
        self.first_of = {block: number * self.width for number, block in enumerate(blocks)}

    def __len__(self) -> int:
        return len(self.first_of) * self.width

    def __getitem__(self, reader: int) -> int:
        block = self.block_of[reader]
        return self.first_of[block] + reader - block.start

    # By views and one copy: an index would have to be brought to the device, and waited for.

    def spread(self, by_reader: Tensor) -> Tensor:
        """(R, ..) -> (slots, ..), zeros where a slot is empty."""
        parts = by_reader.split([len(block) for block in self.first_of])
        return torch.cat([F.pad(part, [0, 0] * (part.dim() - 1) + [0, self.width - len(part)]) for part in parts])

    def gathered(self, by_slot: Tensor) -> Tensor:
        """(slots, ..) -> (R, ..)."""
        return torch.cat([by_slot[first : first + len(block)] for block, first in self.first_of.items()])


@dataclass
class Reads:
    """The launches that read one source, in order of their slots, and its position in each of them.

    first_slot: of the first launch. logits: (N, W, B, T) of each.
    """

    first_slot: int
    position: int
    logits: list[Tensor] = field(default_factory=list)


@dataclass
class Entry:
    """A source (B, T, d) on the tape.

    number: of those before it.
    early: launches that read it for a whole block; late: those that read it for one reader, W = 1.
    """

    number: int
    value: Tensor
    last_reader: int
    early: Reads | None = None
    late: Reads | None = None


class Tape:
    """What the routers of one forward pass compute.

    Args:
        queries: of all readers, (R, d) or (B, R, d). blocks: of readers 1 to R.
        scale: factor of the logits. eps: of the keys' RMSNorm.
        keeps: whether a backward pass may follow.
    """

    def __init__(self, queries: Tensor, blocks: Sequence[range], scale: float, eps: float, *, keeps: bool) -> None:
        self.slots = Slots(blocks)
        self.scale, self.eps = scale, eps
        self.counts: dict[int, float] = {}  # by reader: what its weights add up to
        self.queries = self.slots.spread(queries.detach().movedim(-2, 0))  # (slots, d) or (slots, B, d)
        self._is_zero = (self.queries == 0).flatten(1).all(1)  # of every slot
        self.entries: list[Entry] = []
        self._keeps = keeps
        self._lse: Tensor | None = None
        self._logits: dict[int, list[Tensor]] = {}  # by reader, (N, B, T) in parts
        self._block: range | None = None
        self._num_early = 0
        self._state: State | None = None
        self._early_logits: Tensor | None = None

    @property
    def lse(self) -> Tensor:
        """Of every slot, (slots, B, T); infinite where nothing was read, which weighs nothing then."""
        assert self._lse is not None, "nothing has been read yet"
        return self._lse

    def enter(self, value: Tensor, readers: range) -> Entry:
        entry = Entry(len(self.entries), in_kernel_dtype(value).contiguous(), readers[-1])
        if self._keeps:
            self.entries.append(entry)
        return entry

    def read(self, reader: int, entries: Sequence[Entry], count: float, base: Tensor | None = None) -> Tensor:
        with torch.cuda.device_of(entries[0].value):  # Triton launches on the current device
            mixture = self._read(reader, entries, count)
        # The kernels know no base: where it has to be met to the bit, at a query of zeros, it takes their place.
        return mixture if base is None else torch.where(self._is_zero[self.slots[reader]], base, mixture)

    def _read(self, reader: int, entries: Sequence[Entry], count: float) -> Tensor:
        self.counts[reader] = count
        if self._lse is None:
            shape = (len(self.slots), *entries[0].value.shape[:2])
            self._lse = torch.full(shape, torch.inf, dtype=torch.float32, device=entries[0].value.device)
        if self.slots.block_of[reader] is not self._block:
            self._begin_block(self.slots.block_of[reader], entries)
        slot = self.slots[reader]
        place = slot % self.slots.width
        late = entries[self._num_early :]
        logits = self._lse.new_empty(len(late), 1, *self._lse.shape[1:])
        mixture, self._lse[slot] = finish(
            [entry.value for entry in late],
            self.queries[slot],
            logits,
            self.scale,
            self.eps,
            count,
            None if self._state is None else State(*(part[place] for part in self._state)),
            dtype=entries[0].value.dtype,
        )
        for position, entry in enumerate(late):
            entry.late = entry.late or Reads(slot, position)
            entry.late.logits.append(logits)
        early = [] if self._early_logits is None else [self._early_logits[:, place]]
        self._logits[reader] = [*early, logits[:, 0]]
        return mixture

    def weights(self, reader: int) -> Tensor:
        return (torch.cat(self._logits[reader]) - self.lse[self.slots[reader]]).exp()

    def _begin_block(self, block: range, entries: Sequence[Entry]) -> None:
        """Read for all of the block those first sources that all of it will read."""
        self._block = block
        self._num_early = next((i for i, e in enumerate(entries) if e.last_reader < block[-1]), len(entries))
        early = entries[: self._num_early]
        if not early:
            self._state = self._early_logits = None
            return
        first = self.slots.first_of[block]
        logits = self.lse.new_empty(len(early), self.slots.width, *self.lse.shape[1:])
        queries = self.queries[first : first + self.slots.width]
        self._state = begin([entry.value for entry in early], queries, logits, self.scale, self.eps)
        self._early_logits = logits
        for position, entry in enumerate(early):
            entry.early = entry.early or Reads(first, position)
            entry.early.logits.append(logits)
