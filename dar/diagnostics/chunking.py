"""Chunk boundaries from what a model's sources look like, beside the uniform chunks of the paper's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dar.chunks import ChunkPlan, chunk_size_rule, scatter_of, segment
from dar.diagnostics.profile import source_similarity
from dar.diagnostics.views import View
from dar.sit import SiT

MOST_ALIKE = 0.99  # the rule needs a below 1


@dataclass(frozen=True)
class ChunkProposal:
    """What the sources of a model suggest; `lengths` is a value for `RoutingConfig.chunk_size`.

    similarity: a, the mean cosine of neighbouring sources, and S* by the rule for it.
    lengths, uniform: as many chunks of the best lengths, and of length S*.
    scatter, uniform_scatter: of unit sources around the mean of their chunk, over the number of sublayers:
        0 where the sources of a chunk are alike, near 1 where they have nothing in common.
    """

    similarity: float
    chunk_size: int
    lengths: tuple[int, ...]
    uniform: tuple[int, ...]
    scatter: float
    uniform_scatter: float


def chunk_from_profile(model: SiT | View, data: tuple[Tensor, Tensor, Any]) -> ChunkProposal:
    """Chunks that keep alike sources together, as many as S* = sqrt(L (1 - a) / (1 + a)) makes.

    Args:
        data: x_t (B, C, H, W), t (B) and y, B rows, to measure on.
    """
    return propose_chunks(source_similarity(model, *data).double().cpu().numpy())


def propose_chunks(similarity: np.ndarray) -> ChunkProposal:
    """As `chunk_from_profile`, from the cosines of all sublayer outputs (L, L)."""
    num = len(similarity)
    alike = float(np.diagonal(similarity, 1).mean()) if num > 1 else 0.0
    size = chunk_size_rule(num, min(max(alike, 0.0), MOST_ALIKE))
    uniform = ChunkPlan.of(num, size).lengths
    lengths = segment(similarity, len(uniform))
    return ChunkProposal(
        similarity=alike,
        chunk_size=size,
        lengths=lengths,
        uniform=uniform,
        scatter=scatter_of(similarity, lengths) / num,
        uniform_scatter=scatter_of(similarity, uniform) / num,
    )
