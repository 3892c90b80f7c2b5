"""All routers of one forward pass whose queries are known beforehand, in plain torch.

    s_li = <u_l, v_i> r_i,  a_l = count softmax_i(s_l),  h_l = sum_i a_li v_i
    ds_li = a_li (<dh_l, v_i> - delta_l),  delta_l = <dh_l, h_l> / count
    dv_i = sum_l (a_li dh_l + ds_li r_i u_l) - (sum_l ds_li s_li) r_i^2 / d v_i,  du_l = sum_i ds_li r_i v_i

Off the GPU time goes into bringing tensors from memory and into making new ones. A source therefore meets the queries
of all its readers in one product of matrices, and backward, when all of them are done, it takes each dh_l once, for
<dh_l, v_i> and for the sum, which grows in place.

Legend: B samples, T tokens, d width, R readers, N sources of a reader, K readers of a source; u is a query times scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dar.route import at_least_float32, inverse_rms, mixed, softmax_of


@dataclass
class Entry:
    """A source (B, T, d) on the tape.

    number: of those before it. first_reader: from whom on it is read. inv_rms: (B, T).
    logits: (B, T) for each of its readers. weights: (B, T, 1), by reader, of those who have read it.
    """

    number: int
    value: Tensor
    first_reader: int
    inv_rms: Tensor
    logits: Sequence[Tensor]
    weights: dict[int, Tensor] = field(default_factory=dict)

    def logit(self, reader: int) -> Tensor:
        return self.logits[reader - self.first_reader]


class TorchTape:
    """What the routers of one forward pass compute.

    Args:
        queries: of all readers, (R, d) or (B, R, d). batch: B. scale: factor of the logits. eps: of the keys' RMSNorm.
        keeps: whether a backward pass may follow.
    """

    def __init__(self, queries: Tensor, batch: int, scale: float, eps: float, *, keeps: bool) -> None:
        self.queries = (at_least_float32(queries.detach()) * scale).expand(batch, -1, -1)
        self.query_shape, self.scale = queries.shape, scale
        self.counts: dict[int, float] = {}  # by reader: what its weights add up to
        self.entries: list[Entry] = []
        self._eps = eps
        self._keeps = keeps
        self._weights: dict[int, Tensor] = {}  # by reader, (N, B, T)

    def enter(self, value: Tensor, readers: range) -> Entry:
        v = at_least_float32(value)
        inv_rms = inverse_rms(v, self._eps)
        logits = v.new_empty(len(v), len(readers), v.shape[1])
        # Autocast keeps its hands off a product that is told where to go.
        torch.bmm(self.queries[:, places(readers)], v.mT, out=logits)
        entry = Entry(len(self.entries), value, readers[0], inv_rms, logits.mul_(inv_rms.unsqueeze(1)).unbind(1))
        if self._keeps:
            self.entries.append(entry)
        return entry

    def read(self, reader: int, entries: Sequence[Entry], count: float, base: Tensor | None = None) -> Tensor:
        weights = softmax_of(torch.stack([entry.logit(reader) for entry in entries]), count)
        self.counts[reader], self._weights[reader] = count, weights
        columns = weights.unsqueeze(-1).unbind()
        for entry, column in zip(entries, columns, strict=True):
            entry.weights[reader] = column
        return mixed([entry.value for entry in entries], columns, base).to(entries[0].value.dtype)

    def weights(self, reader: int) -> Tensor:
        return self._weights[reader]


class TorchGradients:
    """One backward pass over a tape."""

    def __init__(self, tape: TorchTape) -> None:
        self._tape = tape
        self._d_mixtures: dict[int, Tensor] = {}  # by reader
        self._deltas: dict[int, Tensor] = {}  # by reader, (B, T)
        self._d_queries = torch.zeros_like(tape.queries, memory_format=torch.contiguous_format)

    def receive(self, reader: int, d_mixture: Tensor, mixture: Tensor) -> None:
        dh = self._d_mixtures[reader] = at_least_float32(d_mixture)
        self._deltas[reader] = torch.linalg.vecdot(dh, at_least_float32(mixture)) / self._tape.counts[reader]

    def pull(self, number: int, d_elsewhere: Tensor | None) -> Tensor | None:
        entry = self._tape.entries[number]
        readers = range(entry.first_reader, entry.first_reader + len(entry.weights))
        v, r = at_least_float32(entry.value), entry.inv_rms
        d_value, products = self._from_mixtures(v, readers, entry.weights)
        if d_value is None:
            return d_elsewhere
        if d_elsewhere is not None:
            d_value += d_elsewhere
        zero = torch.zeros_like(r)
        d_logits = products.sub_(torch.stack([self._deltas.get(reader, zero) for reader in readers]))
        d_logits *= torch.stack([entry.weights[reader] for reader in readers]).squeeze(-1)
        coefficients = d_logits.mul_(r)
        along = (coefficients * torch.stack([entry.logit(reader) for reader in readers])).sum(0).mul_(r)
        d_value.addcmul_(v, along.unsqueeze(-1), value=-1 / v.shape[-1])
        coefficients = coefficients.transpose(0, 1)  # (B, K, T)
        d_value.baddbmm_(coefficients.mT, self._tape.queries[:, places(readers)])
        self._d_queries[:, places(readers)].add_(torch.bmm(coefficients, v))
        return d_value.to(entry.value.dtype)

    def _from_mixtures(self, v: Tensor, readers: range, weights: dict[int, Tensor]) -> tuple[Tensor | None, Tensor]:
        """sum_l a_l dh_l, None where no reader has a dh, and <dh_l, v>, (K, B, T)."""
        total = None
        products = v.new_zeros(len(readers), *v.shape[:2])
        for reader, product in zip(readers, products.unbind(), strict=True):
            dh = self._d_mixtures.get(reader)
            if dh is None:
                continue
            torch.linalg.vecdot(v, dh, out=product)
            total = dh * weights[reader] if total is None else total.addcmul_(dh, weights[reader])
        return total, products

    def of_queries(self) -> Tensor:
        return (self._d_queries * self._tape.scale).sum_to_size(self._tape.query_shape)


def places(readers: range) -> slice:
    """Of readers, who count from 1, in a dimension R."""
    return slice(readers.start - 1, readers.stop - 1)
