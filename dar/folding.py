"""Routing weights as constants, for a model that is asked at a few timesteps only, as a few-step student is.

At one timestep queries of w and e(t) are constants, and one set of them serves all samples. Weights then vary with
content alone. Where they vary little they are replaced by their means over samples, source by source and token by
token, and routing costs what a weighted sum costs: no queries, no keys, no softmax.

    h - h_folded = sum_i (a_i - mean a_i) v_i,    |h - h_folded| <= deviation * max_i |v_i|,
    deviation = sum_i |a_i - mean a_i|
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dar.routing import DepthRouting
from dar.routing.mixers import Fold
from dar.sit import SiT


@dataclass(frozen=True)
class FoldedTimestep:
    """What was found at one timestep.

    deviations: per reader, mean over samples and tokens: the bound of its error over its largest source.
    num_folded: readers with constant weights from now on.
    """

    t: float
    deviations: list[float]
    num_folded: int


@torch.no_grad()
def fold_routing(
    model: SiT, inputs: Sequence[tuple[Tensor, float, Tensor]], tolerance: float = 0.1
) -> tuple[SiT, list[FoldedTimestep]]:
    """A copy of `model` whose weights over depth are constants at the given timesteps, and what that costs.

    At any other timestep, and in every reader whose mean deviation exceeds `tolerance`, it computes what
    `model` computes. Saved, it is `model`.

    Args:
        inputs: x_t (B, C, H, W), t and y (B) for each timestep; as many samples as the means shall rest on.
        tolerance: largest mean deviation of a reader that is folded. Weights of a softmax never deviate by more than 2.

    Raises: ValueError for a model without weights over depth.
    """
    if not isinstance(model.routing, DepthRouting):
        raise ValueError(f"routing {model.config.routing.kind!r} has no weights over depth to fold")
    folded = copy.deepcopy(model)
    assert isinstance(folded.routing, DepthRouting)
    folded.routing.folds = []
    found = []
    for x_t, t, y in inputs:
        times = torch.full((len(y),), t, device=x_t.device, dtype=x_t.dtype)
        weights = model.routing_weights(x_t, times, y)
        means = [w.mean(1, keepdim=True) for w in weights]
        deviations = [float((w - m).abs().sum(0).mean()) for w, m in zip(weights, means, strict=True)]
        constants = [m if d <= tolerance else None for m, d in zip(means, deviations, strict=True)]
        folded.routing.folds.append(Fold(t, model.t_embedder(times[:1])[0], constants))
        found.append(FoldedTimestep(t, deviations, sum(c is not None for c in constants)))
    return folded, found
