"""YAML and dotted overrides to a typed configuration; whatever does not fit is named."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.errors import UserError

T = TypeVar("T")


def load_config(config_type: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, apply `overrides` ("student.steps=2") and build a `config_type`.

    Raises: UserError for a missing or malformed file, an unknown key (with the nearest known one),
        a wrong type, a missing or bad value.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {path}")
    try:
        given = OmegaConf.load(path)
    except Exception as error:  # yaml raises a family of its own
        raise UserError(f"{path} is not YAML: {_one_line(error)}") from error
    if not isinstance(given, DictConfig):
        raise UserError(f"{path} must hold a mapping of sections; it holds a list")
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise UserError(f"override {override!r} must look like section.key=value")
        try:
            given.merge_with_dotlist([override])
        except Exception as error:
            raise UserError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    try:
        values: Any = OmegaConf.to_container(given, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {_one_line(error)}") from error
    return _build(config_type, values, "")


def save_config(config: Any, path: Path) -> None:
    """Write the resolved configuration; `load_config` reads it back."""
    path.write_text(config_to_yaml(config))


def config_to_yaml(config: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(_plain(config)))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _build(config_type: type, values: dict[Any, Any], prefix: str) -> Any:
    """Fill a dataclass from a dictionary, section by section; `prefix` is where we are, "train." say."""
    hints = get_type_hints(config_type)
    known = {field.name: field for field in fields(config_type)}
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known: {', '.join(known)}"
            raise UserError(f"unknown key {prefix}{key}; {hint}")
    built: dict[str, Any] = {}
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise UserError(f"{prefix}{name} is required and has no default")
            continue
        value = values[name]
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name} is a section with keys of its own; got {value!r}")
            # A partial section keeps this field's own defaults, which may differ from its type's.
            if field.default_factory is not MISSING:
                value = _overlay(_plain(field.default_factory()), value)
            built[name] = _build(hints[name], value, f"{prefix}{name}.")
        else:
            built[name] = _convert(hints[name], value, f"{prefix}{name}")
    try:
        return config_type(**built)
    except ValueError as error:  # UserError is one
        raise UserError(_with_prefix(str(error), prefix)) from error


def _overlay(defaults: dict[str, Any], given: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = dict(defaults)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _overlay(result[key], value) if both else value
    return result


def _with_prefix(message: str, prefix: str) -> str:
    """ "optim.lr must ..." said from within "student.optim." becomes "student.optim.lr must ..."."""
    section = prefix.rstrip(".").rpartition(".")
    if section[0] and message.startswith(f"{section[2]}."):
        return f"{section[0]}.{message}"
    return message


def _convert(hint: Any, value: Any, name: str) -> Any:
    """OmegaConf's own conversion to one field's type ("1e-4" to 1e-4, but no "four" to 4)."""
    origin = getattr(hint, "__origin__", None)
    if origin is tuple:
        length = len(hint.__args__)
        if not isinstance(value, (list, tuple)) or len(value) != length:
            raise UserError(f"{name} must be a list of {length} numbers; got {value!r}")
        return tuple(_convert(kind, item, name) for kind, item in zip(hint.__args__, value, strict=True))
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{name} must be a list; got {value!r}")
        return [_convert(hint.__args__[0], item, name) for item in value]
    kinds = getattr(hint, "__args__", (hint,))
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    acceptable = {bool: (bool,), int: (int,), float: (int, float, str), str: (str,)}[kind]
    if not isinstance(value, acceptable) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {value!r}")
    try:
        converted = kind(value)
    except ValueError as error:
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {value!r}") from error
    if converted != converted:  # NaN would pass every check of a limit
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {value!r}")
    return converted


_ARTICLES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
