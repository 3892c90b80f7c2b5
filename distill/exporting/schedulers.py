"""diffusers' scheduler with the timesteps of a student, which it must leave as they are.

sigma is our t. Shifting, which many schedulers do, moves a student to noise levels that it has never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.errors import UserError

TOLERANCE = 1e-6


def flow_scheduler(*, fresh_noise: bool) -> Any:
    """x_t from velocity = eps - x0 by Euler's rule, or x0 and fresh noise mixed anew at every step."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False, stochastic_sampling=fresh_noise)


def check_sigmas(scheduler: Any, sigmas: Sequence[float]) -> None:
    """See that a scheduler takes `sigmas` as they are. Raises: UserError, with what it makes of them."""
    if scheduler.config.use_dynamic_shifting:
        raise UserError(
            "the scheduler has use_dynamic_shifting = true, which would change the student's sigmas; set false"
        )
    scheduler.set_timesteps(sigmas=list(sigmas))
    found = scheduler.sigmas.tolist()
    if len(found) != len(sigmas) + 1 or any(abs(a - b) > TOLERANCE for a, b in zip(found, [*sigmas, 0.0], strict=True)):
        changed, given = (", ".join(f"{sigma:.4g}" for sigma in values) for values in (found[:-1], sigmas))
        raise UserError(f"the scheduler would change the student's sigmas {given} to {changed}; set shift = 1")
