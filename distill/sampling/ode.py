"""Solvers of dx/dt = velocity(x, t) from t = 1 to t = 0; all have the same signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.sampling.guidance import Velocity

OdeSolver = Callable[[Velocity, Tensor, Tensor], Tensor]


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, grid: Tensor) -> Tensor:
    """First order: one evaluation per step.

    Args:
        velocity: (x_t, t (B)) -> velocity.
        x: noise (B, C, H, W), the state at grid[0].
        grid: descending t, as `t_grid` makes it.
    """
    for t, t_next in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        x = x + (t_next - t) * velocity(x, x.new_full((len(x),), t))
    return x


@torch.no_grad()
def heun(velocity: Velocity, x: Tensor, grid: Tensor) -> Tensor:
    """Second order, arXiv:2206.00364 alg. 1: two evaluations per step, one in the last step."""
    for t, t_next in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        slope = velocity(x, x.new_full((len(x),), t))
        x_next = x + (t_next - t) * slope
        if t_next > 0:
            slope = 0.5 * (slope + velocity(x_next, x.new_full((len(x),), t_next)))
            x_next = x + (t_next - t) * slope
        x = x_next
    return x


ODE_SOLVERS: dict[str, OdeSolver] = {"euler": euler, "heun": heun}
