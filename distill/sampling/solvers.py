"""Solvers of the teacher's differential equation from noise, t = 1, to data, t = 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from distill.sampling.guidance import Velocity
from distill.sampling.schedules import t_grid

LAST_STEP = 0.04  # of the SDE, as in SiT's and REPA's samplers


@torch.no_grad()
def euler(velocity: Velocity, x: Tensor, grid: Tensor) -> Tensor:
    """First order: one evaluation per step.

    Args:
        velocity: (x_t, t (B)) -> velocity.
        x: the state (B, C, H, W) at grid[0].
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


@torch.no_grad()
def euler_maruyama(velocity: Velocity, x: Tensor, fresh: Tensor, grid: Tensor) -> Tensor:
    """The SDE with the ODE's marginals, arXiv:2401.08740 eq. 7 and 10 with w(t) = t, one evaluation per step.

    Backwards in t: dx = velocity dt - t score dt + sqrt(2 t |dt|) z, where score = -(x_t + (1 - t) velocity) / t. The
    last step is the drift alone ("Mean" in SiT's sampler).

    Args:
        x: the state (B, C, H, W) at grid[0].
        fresh: standard normal z (K - 2, B, C, H, W) for all steps but the last of a grid (K).
    """
    steps = list(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True))
    for i, (t, t_next) in enumerate(steps):
        v = velocity(x, x.new_full((len(x),), t))
        eps = x + (1 - t) * v  # t score = -eps
        x = x + (t_next - t) * (v + eps)
        if i + 1 < len(steps):
            x = x + math.sqrt(2 * t * (t - t_next)) * fresh[i]
    return x


def sde_grid(num_steps: int, t_range: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Equal steps down to `LAST_STEP`, and one from there to 0: (num_steps + 1). Raises: ValueError for no step."""
    if num_steps < 2:
        raise ValueError(f"the SDE takes at least 2 steps; got {num_steps}")
    return torch.cat([torch.linspace(t_range[1], LAST_STEP, num_steps), torch.zeros(1)])


class Solver(NamedTuple):
    """solve: velocity, noise (K, B, C, H, W), grid -> x at t = 0. grid: number of steps, t_range -> descending t.

    num_noises: number of steps -> K. evaluated: grid -> all t that the velocity is asked at.
    """

    solve: Callable[[Velocity, Tensor, Tensor], Tensor]
    grid: Callable[[int, tuple[float, float]], Tensor]
    num_noises: Callable[[int], int]
    evaluated: Callable[[Tensor], Tensor]


def _of_ode(solve: Callable[[Velocity, Tensor, Tensor], Tensor], evaluated: Callable[[Tensor], Tensor]) -> Solver:
    return Solver(
        lambda velocity, noise, grid: solve(velocity, grid[0] * noise[0], grid),
        lambda num_steps, t_range: t_grid(num_steps, t_range=t_range),
        lambda num_steps: 1,
        evaluated,
    )


SOLVERS: dict[str, Solver] = {
    "euler": _of_ode(euler, lambda grid: grid[:-1]),
    "heun": _of_ode(heun, lambda grid: torch.cat([grid[:-1], grid[1:-1]])),
    "sde": Solver(
        lambda velocity, noise, grid: euler_maruyama(velocity, grid[0] * noise[0], noise[1:], grid),
        sde_grid,
        lambda num_steps: num_steps,
        lambda grid: grid[:-1],
    ),
}
