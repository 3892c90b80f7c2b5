"""Classifier-free guidance; no other module applies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, concat_rows
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
    """

    def __init__(
        self,
        model: Any,
        condition: Condition,
        cfg_scale: float = 1.0,
        interval: tuple[float, float] = (0.0, 1.0),
        cfg_channels: int | None = None,
    ) -> None:
        self.model = model
        self.condition = condition
        self.cfg_scale = cfg_scale
        self.interval = interval
        self.cfg_channels = cfg_channels

    def velocity(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """Guided velocity at x_t (B, *sample_shape), t (B) and y with B rows."""
        if self.cfg_scale == 1.0:
            return self._predicted(x_t, t, y)
        both = self._predicted(torch.cat([x_t, x_t]), torch.cat([t, t]), concat_rows(y, self.condition.null(y)))
        cond, uncond = both.chunk(2)
        guided = torch.where(t_like(self._acts_at(t), cond), combine_cfg(cond, uncond, self.cfg_scale), cond)
        if self.cfg_channels is not None:
            guided[:, self.cfg_channels :] = cond[:, self.cfg_channels :]
        return guided

    def x0(self, x_t: Tensor, t: Tensor, y: ConditionBatch) -> Tensor:
        """Guided estimate of the clean sample. Guiding x0 and guiding the velocity give the same result."""
        return velocity_to_x0(x_t, self.velocity(x_t, t, y), t)

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

    def _acts_at(self, t: Tensor) -> Tensor:
        low, high = self.interval
        return (t >= low) & (t <= high)
