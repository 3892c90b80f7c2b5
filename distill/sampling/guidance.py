"""Classifier-free guidance; no other module applies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, concat_rows
from distill.config import TeacherConfig
from distill.sampling.flow import combine_cfg, t_like, velocity_to_x0

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, ..), t (B)) -> velocity, in the shape of x_t."""


class Denoiser:
    """A model with guidance, which gives the velocity and x0.

    Args:
        model: model(x_t, t, y) -> velocity.
        condition: the condition that y is a batch of.
        cfg_scale: 1.0 for no guidance; otherwise conditional and unconditional inputs run as one batch of 2 B rows.
        interval: guidance applies only for t in [low, high] (arXiv:2404.07724); elsewhere the scale is 1.
        cfg_channels: guidance applies to the first `cfg_channels` channels, and the others keep the conditional
            velocity, as in the samplers of DiT and SiT, which guide 3 of 4; None guides all channels.
        cfg_rescale: how far the guided velocity gets the norm of the conditional one, from 0 to 1 (arXiv:2305.08891
            section 3.4, there of standard deviations).
    """

    def __init__(
        self,
        model: Any,
        condition: Condition,
        cfg_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        cfg_channels: int | None = None,
        cfg_rescale: float = 0.0,
    ) -> None:
        self.model = model
        self.condition = condition
        self.cfg_scale = cfg_scale
        self.interval = interval
        self.cfg_channels = cfg_channels
        self.cfg_rescale = cfg_rescale

    def velocity(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """Guided velocity at x_t (B, *sample_shape), t (B) and y with B rows."""
        if self.cfg_scale == 1.0:
            return self._predicted(x_t, t, y)
        cond, uncond = self._both(x_t, t, y)
        return self._combined(cond, uncond, t)

    def x0(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """Guided estimate of the clean sample. Without rescaling, to guide x0 or the velocity is the same."""
        return velocity_to_x0(x_t, self.velocity(x_t, t, y), t)

    def unguided_x0(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """The conditional estimate of the clean sample."""
        return velocity_to_x0(x_t, self._predicted(x_t, t, y), t)

    def guidance(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """What guidance adds to the estimate of the clean sample: `x0` = `unguided_x0` + this."""
        cond, uncond = self._both(x_t, t, y)
        return t_like(t, x_t) * (cond - self._combined(cond, uncond, t))

    def velocity_field(self, y: ConditionBatch) -> Velocity:
        """The velocity field for a fixed condition, as the solvers take it: with one t for all rows.

        Where guidance does not act, B rows are computed instead of 2 B.
        """
        everywhere = self.interval[0] <= 0 and self.interval[1] >= 1  # then no value of t is looked at

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            acts = everywhere or bool(self._acts_at(t).any())
            return self.velocity(x_t, t, y) if acts else self._predicted(x_t, t, y)

        return velocity

    def evaluations(self, t: Tensor) -> int:
        """Forward passes per sample for velocities at t (S). A guided evaluation counts as two."""
        return len(t) if self.cfg_scale == 1.0 else len(t) + int(self._acts_at(t).sum())

    def _predicted(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        # Under autocast a network answers in bf16; the differences of guidance and the steps need more digits.
        return self.model(x_t, t, y).to(x_t.dtype)

    def _both(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> tuple[Tensor, ...]:
        """Conditional and unconditional velocity, from one pass."""
        return self._predicted(torch.cat([x_t, x_t]), torch.cat([t, t]), concat_rows(y, self.condition.null(y))).chunk(
            2
        )

    def _combined(self, cond: Tensor, uncond: Tensor, t: Tensor) -> Tensor:
        result = combine_cfg(cond, uncond, self.cfg_scale)
        if self.cfg_rescale:
            result = result * (1 + self.cfg_rescale * (norm(cond) / norm(result).clamp(min=1e-12) - 1))
        result = torch.where(t_like(self._acts_at(t), cond), result, cond)
        if self.cfg_channels is not None:
            result[:, self.cfg_channels :] = cond[:, self.cfg_channels :]
        return result

    def _acts_at(self, t: Tensor) -> Tensor:
        low, high = self.interval
        return (t >= low) & (t <= high)


def guided(model: Any, condition: Condition, teacher: TeacherConfig) -> Denoiser:
    """A model with the guidance that `teacher` says."""
    return Denoiser(model, condition, teacher.cfg_scale, teacher.interval, teacher.cfg_channels, teacher.cfg_rescale)


def norm(x: Tensor) -> Tensor:
    """The norm of each sample, (B, 1, ..)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)
