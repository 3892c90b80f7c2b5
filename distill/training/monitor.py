"""Figures that tell whether distribution matching works, which its loss does not."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_BINS = 5


class GapByTime:
    """mean |x0_fake - x0_teacher| by t bin, gathered over the updates since the last look."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(NUM_BINS)
        self._counts = torch.zeros(NUM_BINS)

    def add(self, t: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> None:
        """t (B) in [0, 1]; estimates (B, C, H, W)."""
        gap = (x0_fake.float() - x0_teacher.float()).abs().flatten(1).mean(1).cpu()
        bins = (t.float().cpu() * NUM_BINS).long().clamp_(max=NUM_BINS - 1)
        self._sums.index_add_(0, bins, gap)
        self._counts.index_add_(0, bins, torch.ones_like(gap))

    def take(self) -> dict[str, float]:
        """Means over all t and by bin, of bins that were met; starts anew."""
        sums, counts = self._sums, self._counts
        self._reset()
        values = {"x0_gap": float(sums.sum() / counts.sum().clamp(min=1))}
        for i in range(NUM_BINS):
            if counts[i]:
                values[f"x0_gap/t {i / NUM_BINS:.1f}-{(i + 1) / NUM_BINS:.1f}"] = float(sums[i] / counts[i])
        return values
