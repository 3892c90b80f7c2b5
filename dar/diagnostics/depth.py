"""What is measured along depth in one recorded pass: a registry.

To add a measure: a function of a `Pass` that gives (places, B), decorated with `@depth_measure`. It then is
in the diagnosis, its JSON and its page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dar.diagnostics.measures import cosine, effective_sources, entropy, group_share, rms
from dar.diagnostics.profile import Pass
from dar.diagnostics.readers import EMBEDDING, Reader
from dar.diagnostics.views import View, view_of
from dar.sit import SiT

Compute = Callable[[Pass], Tensor]


@dataclass(frozen=True)
class DepthMeasure:
    """One quantity along depth.

    axis: a key of `AXES`, what its places are. log: whether it is to be shown on a logarithmic axis.
    needs_weights: whether it exists only for routings with weights over depth.
    """

    name: str
    title: str
    axis: str
    explanation: str
    compute: Compute
    unit: str = ""
    log: bool = False
    needs_weights: bool = False


@dataclass(frozen=True)
class Place:
    """A point of depth: `position` counts blocks, 0 is the embedding and K the end of the last block."""

    name: str
    position: float


DEPTH_MEASURES: dict[str, DepthMeasure] = {}


def depth_measure(title: str, axis: str, explanation: str, **options: bool | str) -> Callable[[Compute], Compute]:
    """Register a function of a `Pass` under its own name."""

    def add(compute: Compute) -> Compute:
        name = compute.__name__
        if name in DEPTH_MEASURES:
            raise ValueError(f"depth measure {name!r} is registered already")
        DEPTH_MEASURES[name] = DepthMeasure(name, title, axis, explanation, compute, **options)  # type: ignore[arg-type]
        return compute

    return add


def _hidden_places(view: View) -> list[Place]:
    return [Place(f"z_{k}", float(k)) for k in range(view.num_blocks + 1)]


def _block_places(view: View) -> list[Place]:
    return [Place(f"block {k}", float(k)) for k in range(1, view.num_blocks + 1)]


def _pair_places(view: View) -> list[Place]:
    return [Place(f"z_{k} to z_{k + 1}", k + 0.5) for k in range(view.num_blocks)]


def _sublayer_places(view: View) -> list[Place]:
    return [Place(name, number / view.per_block) for number, name in enumerate(view.sublayer_names(), start=1)]


def _source_places(view: View) -> list[Place]:
    return [Place(EMBEDDING, 0.0), *_sublayer_places(view)]


def _reader_places(view: View) -> list[Place]:
    return [Place(reader.name, number / view.per_block) for number, reader in enumerate(view.readers, start=1)]


AXES: dict[str, Callable[[View], list[Place]]] = {
    "hidden": _hidden_places,
    "block": _block_places,
    "pair": _pair_places,
    "sublayer": _sublayer_places,
    "source": _source_places,
    "reader": _reader_places,
}


@depth_measure(
    "RMS of the hidden state",
    "hidden",
    "z_k is what the first sublayer of block k + 1 reads, or the head after the last; z_0 is the embedding",
    log=True,
)
def hidden_rms(run: Pass) -> Tensor:
    """RMS of z_0..z_K over tokens and channels, (K + 1, B)."""
    return torch.stack([rms(z) for z in run.record.hidden])


@depth_measure(
    "RMS of the sublayers' outputs", "source", "what each sublayer writes, gate included; first the embedding", log=True
)
def source_rms(run: Pass) -> Tensor:
    """RMS of v_0..v_L over tokens and channels, (L + 1, B)."""
    assert run.record.embedding is not None
    return torch.stack([rms(v) for v in (run.record.embedding, *run.record.writes)])


@depth_measure(
    "RMS of the loss gradient",
    "block",
    "of each sample's flow matching loss with respect to what a block writes last; in a plain residual stream "
    "that is its gradient with respect to the hidden state",
    log=True,
)
def gradient_rms(run: Pass) -> Tensor:
    """RMS of dL/dv over tokens and channels for what each block writes last, (K, B)."""
    return torch.stack([rms(gradient) for gradient in run.gradients])


@depth_measure(
    "Cosine of neighbouring hidden states",
    "pair",
    "cos(z_k, z_k+1), mean over tokens; 1: the block leaves the direction of its input as it is",
)
def neighbour_cosine(run: Pass) -> Tensor:
    """cos(z_k, z_{k+1}) for k = 0..K-1, mean over tokens, (K, B)."""
    return torch.stack([cosine(a, b) for a, b in pairwise(run.record.hidden)])


def _by_reader(run: Pass, measure: Callable[[Tensor, Reader], Tensor]) -> Tensor:
    """A measure (B, T) of every reader's weights, mean over tokens, (readers, B)."""
    return torch.stack([measure(w, reader).mean(1) for w, reader in zip(run.weights, run.view.readers, strict=True)])


@depth_measure("Entropy of the weights", "reader", "per token, then the mean", unit="nats", needs_weights=True)
def weight_entropy(run: Pass) -> Tensor:
    return _by_reader(run, lambda weights, _: entropy(weights))


@depth_measure(
    "Effective number of sources", "reader", "exp(entropy): so many sources with equal weights", needs_weights=True
)
def effective_number(run: Pass) -> Tensor:
    return _by_reader(run, lambda weights, _: effective_sources(weights))


@depth_measure("Share of the embedding", "reader", "of a reader's weights", needs_weights=True)
def embedding_share(run: Pass) -> Tensor:
    """nan for a reader of no weights; 0 where the embedding is an anchor outside the weights."""
    return _by_reader(run, lambda weights, reader: group_share(weights, reader.embedding))


@depth_measure(
    "Share of the first half of depth", "reader", "of a reader's weights, the embedding apart", needs_weights=True
)
def first_half_share(run: Pass) -> Tensor:
    half = (run.view.num_sublayers + 1) / 2
    return _by_reader(run, lambda weights, reader: group_share(weights, reader.sources_within(0, half)))


@depth_measure("Share of the second half of depth", "reader", "of a reader's weights", needs_weights=True)
def second_half_share(run: Pass) -> Tensor:
    half = (run.view.num_sublayers + 1) / 2
    return _by_reader(run, lambda weights, reader: group_share(weights, reader.sources_within(half, torch.inf)))


def measures_of(model: SiT | View) -> Sequence[DepthMeasure]:
    """Those that exist for this model."""
    has_weights = bool(view_of(model).readers)
    return [measure for measure in DEPTH_MEASURES.values() if has_weights or not measure.needs_weights]
