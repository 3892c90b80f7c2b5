"""Configurations as callers give them: an object, a dictionary, or a YAML file or shipped recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill.assets.recipes import config_path
from distill.config import build_config, override_values, plain_values, read_values

T = TypeVar("T")
ConfigLike = Any
"""A configuration object, a mapping of sections, or a path or a recipe's name."""


def values_of(config: ConfigLike, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """The plain values of a configuration, with `overrides` ("student.steps=2"). Raises: UserError as `load_config`."""
    if isinstance(config, (str, Path)):
        return read_values(config_path(str(config)), overrides)
    if isinstance(config, Mapping):
        return override_values(dict(config), overrides)
    return override_values(plain_values(config), overrides)


def config_of(config_type: type[T], config: ConfigLike, overrides: Sequence[str] = ()) -> T:
    """A `config_type`. Raises: UserError as `load_config`."""
    if isinstance(config, config_type) and not overrides:
        return config
    return build_config(config_type, values_of(config, overrides))
