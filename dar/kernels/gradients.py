"""The backward pass of a tape: gradients wait for their sources instead of being handed to them one by one.

A reader leaves its dh here. A source is pulled when all of its readers have: in one pass over their gradients
(`dar.kernels.pull`), for two sources at a time where these are read early by the same readers.

Legend as in `dar.kernels.tape`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dar.kernels.pull import pull, write_delta
from dar.kernels.tape import Entry, Reads, Tape

TARGETS = 2  # sources that are pulled together: of more, a program could not hold gradients and values in registers


class Gradients:
    """One backward pass over a tape; a reader that it never reaches counts with dh = 0."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        self._d_mixtures: dict[int, Tensor] = {}  # by slot
        self._delta = torch.zeros_like(tape.lse)
        # Every token reads them anew: in float32 they would be most of what is read.
        self._queries = tape.queries.to(tape.entries[0].value.dtype)
        self._d_queries = torch.zeros_like(tape.queries, dtype=torch.float32)
        self._pulled_early: dict[int, Tensor] = {}  # (1, B, T, d) by number, until the rest is added
        # Who is pulled together: neighbours in the launches of the same readers.
        self._company: dict[tuple[int, int, int], list[Entry]] = {}
        for entry in tape.entries:
            if entry.early is not None:
                self._company.setdefault(_company_of(entry, entry.early), []).append(entry)

    def receive(self, reader: int, d_mixture: Tensor, mixture: Tensor) -> None:
        slot, count = self._tape.slots[reader], self._tape.counts[reader]
        self._d_mixtures[slot] = d_mixture.to(mixture.dtype).contiguous()
        write_delta(self._d_mixtures[slot], mixture, count, self._delta[slot])

    def pull(self, number: int, d_elsewhere: Tensor | None) -> Tensor | None:
        entry = self._tape.entries[number]
        if entry.early is not None and number not in self._pulled_early:
            company = self._company[_company_of(entry, entry.early)]
            company = sorted(company, key=lambda member: member.early.position if member.early else 0)
            assert company[0].early is not None
            pulled = self._pull(company, company[0].early, None)
            self._pulled_early |= {member.number: part for member, part in zip(company, pulled.split(1), strict=True)}
        so_far = self._pulled_early.pop(number, None)
        if d_elsewhere is not None:
            d_elsewhere = d_elsewhere.to(entry.value.dtype).contiguous()[None]
            so_far = d_elsewhere if so_far is None else so_far + d_elsewhere
        if entry.late is not None:
            so_far = self._pull([entry], entry.late, so_far)
        return None if so_far is None else so_far[0]

    def of_queries(self) -> Tensor:
        return self._tape.slots.gathered(self._d_queries).movedim(0, -2)

    def _pull(self, entries: list[Entry], reads: Reads, start: Tensor | None) -> Tensor:
        per_launch = reads.logits[0].shape[1]
        last = self._tape.slots[entries[0].last_reader]
        num_slots = min(last + 1 - reads.first_slot, len(reads.logits) * per_launch)
        slots = range(reads.first_slot, reads.first_slot + num_slots)
        absent = None
        d_mixtures = []
        for slot in slots:
            if slot not in self._d_mixtures and absent is None:
                absent = torch.zeros_like(entries[0].value)
            d_mixtures.append(self._d_mixtures.get(slot, absent))
        gradients, coefficients = pull(
            [entry.value for entry in entries], d_mixtures, reads.logits, self._queries, self._tape.lse,
            self._delta, first=slots.start, position=reads.position, per_call=per_launch,
            scale=self._tape.scale, eps=self._tape.eps, start=start,
        )  # fmt: skip
        for entry, coefficient in zip(entries, coefficients, strict=True):
            self._d_queries[slots.start : slots.stop] += _weighted_sums(coefficient, entry.value, self._d_queries.dim())
        return gradients


def _company_of(entry: Entry, early: Reads) -> tuple[int, int, int]:
    return early.first_slot, entry.last_reader, early.position // TARGETS


def _weighted_sums(coefficients: Tensor, value: Tensor, dim: int) -> Tensor:
    """sum c v over tokens, (slots, B, d), and where `dim` is 2 over samples, (slots, d): a product of matrices."""
    # bfloat16 has float32's range; in float16 a small c would be lost.
    narrow = value.dtype if value.dtype == torch.bfloat16 else torch.float32
    c, v = coefficients.to(narrow), value.to(narrow)
    if dim == 2:
        return c.flatten(1) @ v.flatten(0, 1)
    return torch.matmul(c.transpose(0, 1), v).transpose(0, 1)
