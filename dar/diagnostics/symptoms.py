"""The symptoms in one call, for scripts that compare routings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dar.diagnostics.depth import gradient_rms, hidden_rms, neighbour_cosine
from dar.diagnostics.profile import recorded_pass
from dar.diagnostics.views import View
from dar.sit import SiT


@dataclass(frozen=True, eq=False)
class Symptoms:
    """What arXiv:2605.20708 starts from, means over a batch, by depth.

    hidden_rms: RMS of z_0..z_K, (K + 1). gradient_rms: RMS of dL/dv for the last v of blocks 1..K, (K).
    neighbour_cosine: cos(z_k, z_{k+1}) for k = 0..K-1, (K).
    """

    hidden_rms: Tensor
    gradient_rms: Tensor
    neighbour_cosine: Tensor


def symptoms(model: SiT | View, x0: Tensor, eps: Tensor, t: Tensor, y: Any) -> Symptoms:
    """RMS of hidden states and of dL/dv, and the cosine of neighbouring blocks, on one batch.

    Args: as `recorded_pass`, which says what the gradient is.
    Returns: means over the batch of per-sample values.
    """
    run = recorded_pass(model, x0, eps, t, y)
    return Symptoms(hidden_rms(run).mean(1), gradient_rms(run).mean(1), neighbour_cosine(run).mean(1))
