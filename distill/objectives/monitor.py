"""Figures that show whether distribution matching works, which its loss does not."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

NUM_BINS = 5


class GapByTime:
    """mean |x0_fake - x0_teacher| by t bin, gathered over the updates and processes since the last look.

    All processes have to ask for values and for the state, in which all of them have their share.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._reset()

    def _reset(self) -> None:
        self._sums, self._counts = torch.zeros(2, NUM_BINS, device=self._accelerator.device)

    def _gathered(self) -> Tensor:
        return reduced(torch.stack([self._sums, self._counts]), self._accelerator).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"gathered": self._gathered()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reset()
        if self._accelerator.is_main_process:  # once, as it will be added up again
            self._sums, self._counts = state["gathered"].to(self._accelerator.device)

    def add(self, t: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> None:
        """t (B) in [0, 1]; estimates (B, C, H, W)."""
        gap = (x0_fake.float() - x0_teacher.float()).abs().flatten(1).mean(1)
        bins = (t.float() * NUM_BINS).long().clamp_(max=NUM_BINS - 1)
        of_bin = (bins[:, None] == torch.arange(NUM_BINS, device=bins.device)).float()
        self._sums += gap @ of_bin
        self._counts += of_bin.sum(0)

    def take(self) -> dict[str, float]:
        """Means over all t and by bin, of bins with samples; starts again."""
        sums, counts = self._gathered()
        self._reset()
        values = {"x0_gap": float(sums.sum() / counts.sum().clamp(min=1))}
        for i in range(NUM_BINS):
            if counts[i]:
                values[f"x0_gap/t {i / NUM_BINS:.1f}-{(i + 1) / NUM_BINS:.1f}"] = float(sums[i] / counts[i])
        return values


def spread(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The standard deviation of all values of a batch, of all processes; on the device. All have to ask for it."""
    wide = values.double()
    sums = torch.stack([wide.new_full((), wide.numel()), wide.sum(), wide.square().sum()])
    count, total, squares = reduced(sums, accelerator)
    return ((squares - total**2 / count) / (count - 1)).clamp(min=0).sqrt()


def reduced(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum over all processes, on the device."""
    result = accelerator.reduce(values, reduction="sum")
    assert isinstance(result, Tensor)
    return result
