"""Figures that show whether distribution matching works, which its loss does not.

Those of the last step of the student's list, which makes the samples that a user gets, stand apart from the others'.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

NUM_BINS = 5


class Monitor:
    """Gap between critic and teacher, and drift of the student's samples, over the updates since the last look.

        x0_gap = mean |x0_fake - x0_teacher|, by bin of t too,   std_drift = std(x0_gen) / std(teacher's samples) - 1

    All processes have to ask for values and for the state, in which all of them have their share.
    """

    def __init__(self, accelerator: Accelerator, num_steps: int, teacher_std: float) -> None:
        self._accelerator, self._num_steps, self._teacher_std = accelerator, num_steps, teacher_std
        self._reset()

    def _reset(self) -> None:
        device = self._accelerator.device
        self._gaps = torch.zeros(2, NUM_BINS, self._num_steps, device=device)  # sums, counts
        self._moments = torch.zeros(3, self._num_steps, device=device, dtype=torch.float64)  # count, sum, squares

    def state_dict(self) -> dict[str, Any]:
        return {"gaps": self._reduced(self._gaps), "moments": self._reduced(self._moments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._reset()
        if self._accelerator.is_main_process:  # once, as they will be added up again
            self._gaps, self._moments = (state[name].to(self._accelerator.device) for name in ("gaps", "moments"))

    def add(self, t: Tensor, step: Tensor, x0_gen: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> None:
        """t (B) in [0, 1]; step (B) of the student's list; estimates (B, *sample_shape)."""
        gap = (x0_fake.float() - x0_teacher.float()).abs().flatten(1).mean(1)
        bins = (t.float() * NUM_BINS).long().clamp_(max=NUM_BINS - 1)
        of_bin, of_step = indicator(bins, NUM_BINS), indicator(step, self._num_steps)
        self._gaps += torch.stack([(of_bin * gap[:, None]).T @ of_step, of_bin.T @ of_step])
        wide = x0_gen.double().flatten(1)
        moments = torch.stack([torch.full_like(wide[:, 0], wide.shape[1]), wide.sum(1), wide.square().sum(1)])
        self._moments += moments @ of_step.double()

    def take(self) -> dict[str, float]:
        """The figures of groups and bins with samples; starts again."""
        gaps, moments = self._reduced(self._gaps), self._reduced(self._moments)
        self._reset()
        values = ratios("x0_gap", *gaps.sum(1))
        for i, (total, count) in enumerate(gaps.sum(-1).T.tolist()):
            if count:
                values[f"x0_gap/t {i / NUM_BINS:.1f}-{(i + 1) / NUM_BINS:.1f}"] = total / count
        for group, (count, total, squares) in by_steps(moments).items():
            if count > 1:
                std = float(((squares - total**2 / count) / (count - 1)).clamp(min=0).sqrt())
                values[f"{group}std_drift"] = std / self._teacher_std - 1
        return values

    def _reduced(self, values: Tensor) -> Tensor:
        return reduced(values, self._accelerator).cpu()


def sums_by_step(values: Tensor, step: Tensor, num_steps: int, accelerator: Accelerator) -> Tensor:
    """The sums (S) of values (B) of each step, step (B), over all processes. All have to ask for it."""
    return reduced(values @ indicator(step, num_steps), accelerator)


def ratios(name: str, sums: Tensor, counts: Tensor) -> dict[str, float]:
    """sums / counts, (S) each, of all steps and of the groups that have any: `name`, `last_step/name`, .."""
    groups = by_steps(torch.stack([sums, counts]))
    return {f"{group}{name}": float(total / count) for group, (total, count) in groups.items() if count}


def by_steps(parts: Tensor) -> dict[str, Tensor]:
    """Sums over steps of parts (.., S): of all, and where there are several of the last step and of those before."""
    groups = {"": parts}
    if parts.shape[-1] > 1:
        groups |= {"last_step/": parts[..., -1:], "earlier_steps/": parts[..., :-1]}
    return {group: part.sum(-1) for group, part in groups.items()}


def indicator(index: Tensor, size: int) -> Tensor:
    """(B, size): 1 where index (B) is the column's, else 0."""
    return (index[:, None] == torch.arange(size, device=index.device)).float()


def reduced(values: Tensor, accelerator: Accelerator) -> Tensor:
    """The sum over all processes, on the device."""
    result = accelerator.reduce(values, reduction="sum")
    assert isinstance(result, Tensor)
    return result
