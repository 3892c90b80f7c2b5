"""Checks of a configuration's values, which a file may give any type and size."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_type_hints


def check_types(config: Any, section: str) -> None:
    """See that the numbers, words and switches of a dataclass are such, and finite: `True` is no 1, and 16.0 no 16.

    Raises: ValueError, which names the field.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), hints[field.name]
        if kind not in _NAMES:
            continue
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is float and not math.isfinite(value)):
            raise ValueError(f"{section}.{field.name} must be {_NAMES[kind]}; got {value!r}")


def check_between(config: Any, section: str, low: float, high: float, *names: str) -> None:
    """Raises: ValueError, which names the field and the limit."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            limit = f"at least {low:g}" if value < low else f"at most {high:g}"
            raise ValueError(f"{section}.{name} must be {limit}; got {value:g}")


_NAMES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a word"}
