"""Checks of values: each names the field, the value and the limit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from distill.errors import UserError

MOST = 2**31 - 1
"""Of any number that has no limit of its own: what is larger overflows somewhere, and means nothing."""


def at_least(owner: Any, section: str, minimum: float, *names: str, most: float = MOST) -> None:
    for name in names:
        value = getattr(owner, name)
        if not minimum <= value <= most:
            limit = (
                "finite" if value == math.inf else f"at least {minimum:g}" if value < minimum else f"at most {most:g}"
            )
            raise UserError(f"{f'{section}.{name}'.lstrip('.')} must be {limit}; got {value:g}")


def within(owner: Any, section: str, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not low <= value <= high:
            raise UserError(f"{section}.{name} must lie in [{low:g}, {high:g}]; got {value:g}")


def seed(owner: Any, section: str) -> None:
    if not -(2**63) <= owner.seed < 2**63:
        raise UserError(f"{section}.seed must lie in [-2^63, 2^63); got {owner.seed}")


def ema_decay(owner: Any, section: str) -> None:
    if not 0 <= owner.ema_decay < 1:  # at 1 the average would never move
        raise UserError(f"{section}.ema_decay must lie in [0, 1); got {owner.ema_decay:g}")


def t_list(name: str, values: list[float]) -> None:
    """Timesteps of a student, from noise to data."""
    if not values or not all(0 < low < high for low, high in pairwise([*reversed(values), 1.0 + 1e-6])):
        raise UserError(f"{name} must fall from at most 1 and stay above 0; got {values}")


def one_of(owner: Any, section: str, name: str, allowed: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in allowed:
        raise UserError(f"{section}.{name} must be one of {', '.join(allowed)}; got {value!r}")
