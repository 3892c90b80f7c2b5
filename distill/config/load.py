"""YAML and dotted overrides to a typed configuration; what does not fit is named."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.errors import UserError, reading
from distill.progress import logger

CONFIG_FILE = "config.yaml"
"""The resolved configuration in the folder of a run."""

MOVED = {
    "dmd": "objective",
    "fake_score": "objective.fake_score",
    "objective.rollout": "student.rollout",
    "objective.t_min": "objective.t.low",
    "objective.t_max": "objective.t.high",
    "objective.fake_score.t_sampler": "objective.fake_score.t.sampler",
    "flow_matching.t_sampler": "flow_matching.t.sampler",
}
"""Names of earlier configurations, in this order, and what they are called now."""

MOST_NODES = 10_000
"""Of a configuration; a real one has 200."""

VARIANTS: dict[str, dict[str, type]] = {}
"""The sections of which there are several kinds, chosen by `name`, and the kinds; who has such a section adds it."""

T = TypeVar("T")


def load_config(config_type: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read `path`, apply `overrides` ("student.steps=2") and build a `config_type`.

    Raises: UserError for a missing or malformed file, an unknown key (with the nearest known one),
        a wrong type, a missing or bad value.
    """
    return build_config(config_type, read_values(path, overrides))


def config_from_overrides(config_type: type[T], overrides: Sequence[str]) -> T:
    """As `load_config`, from defaults instead of a file."""
    return build_config(config_type, _overridden(OmegaConf.create({}), overrides, ""))


def build_config(config_type: type[T], values: dict[Any, Any]) -> T:
    """A `config_type` from plain values by section. Raises: UserError as `load_config`."""
    return _build(config_type, _with_current_names(values), "")


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[Any, Any]:
    """The plain values in `path`, with `overrides`; what they mean is not looked at.

    Raises: UserError where the file is missing, is not YAML or holds no mapping, or an override cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no configuration file {path}")
    with reading(path, "is not YAML"):
        _check_size(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
        given = OmegaConf.load(path)
    if not isinstance(given, DictConfig):
        raise UserError(f"{path} must hold a mapping of sections; it holds a list")
    current = _with_current_names(OmegaConf.to_container(given))
    return _overridden(OmegaConf.create(current), overrides, f"{path}: ")


def _check_size(node: Any) -> None:
    """See that a document stays small when its aliases are written out. Raises: ValueError."""
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES  # of one that is a part of itself
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
            sizes[id(node)] = 1 + sum(map(size, flat))
        return sizes[id(node)]

    if node is not None and size(node) > MOST_NODES:
        raise ValueError(f"it has more than {MOST_NODES:,} values when its aliases are written out")


def override_values(values: dict[Any, Any], overrides: Sequence[str]) -> dict[Any, Any]:
    """Plain values with `overrides`. Raises: UserError where one cannot be read."""
    return _overridden(OmegaConf.create(_with_current_names(values)), overrides, "")


def _overridden(given: DictConfig, overrides: Sequence[str], where: str) -> dict[Any, Any]:
    for override in overrides:
        if "=" not in override.lstrip("="):
            raise UserError(f"override {override!r} must look like section.key=value")
        for old, new in MOVED.items():
            if override.startswith((f"{old}.", f"{old}=")):
                override = new + override.removeprefix(old)
        section, chooses, kind = override.partition(".name=")
        if chooses and section in VARIANTS:
            given = OmegaConf.create(with_variant(_plain(given), section, kind))
        try:
            given.merge_with_dotlist([override])
        except Exception as error:
            raise UserError(f"override {override!r} cannot be read: {_one_line(error)}") from error
    try:
        values: Any = OmegaConf.to_container(given, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{where}{_one_line(error)}") from error
    return values


def with_variant(values: dict[Any, Any], section: str, name: str) -> dict[Any, Any]:
    """Values with another kind of a section: what it has that this kind does not know is left out, and said."""
    there, kinds = values.get(section), VARIANTS[section]
    if not isinstance(there, dict) or name not in kinds:
        return values
    before = there.get("name", next(iter(kinds)))
    if before == name:
        return values
    kept = {field.name for field in fields(kinds[name])} & set(there)
    if left := sorted(set(there) - kept):
        logger.info(f"{section}.name = {name} does not take {', '.join(left)}, which was for {before}")
    return {**values, section: {**{key: there[key] for key in kept}, "name": name}}


def _plain(given: DictConfig) -> dict[Any, Any]:
    values: Any = OmegaConf.to_container(given)
    return values


def _with_current_names(values: Any) -> Any:
    """Values of a configuration whose names may be those of an earlier one."""
    for old, new in MOVED.items():
        *sections, name = old.split(".")
        parents = [values]
        for section in sections:
            parents.append(parents[-1].get(section) if isinstance(parents[-1], dict) else None)
        if isinstance(parents[-1], dict) and name in parents[-1]:
            moved = _without(values, [*sections, name])
            found = parents[-1][name]
            found = {} if found is None else found
            for part in reversed(new.split(".")):
                found = {part: found}
            values = merge_values(moved, found)
    return values


def _without(values: dict[Any, Any], names: Sequence[str]) -> dict[Any, Any]:
    """`values` without what is at `names`."""
    first, *rest = names
    if rest:
        return {**values, first: _without(values[first], rest)}
    return {name: value for name, value in values.items() if name != first}


def merge_values(base: dict[Any, Any], given: dict[Any, Any]) -> dict[Any, Any]:
    """`base` with what `given` says, section by section."""
    result: dict[Any, Any] = dict(base)
    for key, value in given.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_values(result[key], value) if both else value
    return result


def config_to_yaml(config: Any) -> str:
    """The resolved configuration; `load_config` reads it back."""
    return OmegaConf.to_yaml(OmegaConf.create(plain_values(config)))


def flat_values(config: Any) -> dict[str, Any]:
    """The resolved configuration by dotted name, {"train.steps": 1000, ..}."""
    return _flattened(plain_values(config))


def _flattened(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def plain_values(value: Any) -> Any:
    """A configuration as dictionaries, lists and scalars."""
    if is_dataclass(value):
        return {field.name: plain_values(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: plain_values(item) for name, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, (list, tuple)) else value


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
        if "sections" in field.metadata:
            built[name] = _build_sections(field.metadata["sections"], value, f"{prefix}{name}")
            continue
        section = _section_type(hints[name], field, value, f"{prefix}{name}")
        if section is not None and value is not None:
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{name} is a section with keys of its own; got {_short(value)}")
            # A partial section keeps this field's own defaults, which may differ from its type's.
            if field.default_factory is not MISSING and isinstance(default := field.default_factory(), section):
                value = merge_values(plain_values(default), value)
            built[name] = _build(section, value, f"{prefix}{name}.")
        else:
            built[name] = _convert(hints[name], value, f"{prefix}{name}")
    try:
        return config_type(**built)
    except ValueError as error:  # UserError is one
        raise UserError(_with_prefix(str(error), prefix)) from error


def _build_sections(types: dict[str, type], value: Any, path: str) -> dict[str, Any]:
    """Sections by name, each of the type that goes by it."""
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path} is a section with sections of its own; got {_short(value)}")
    for name, section in (value or {}).items():
        if name not in types:
            raise UserError(f"{path}.{name} is not known; {path} takes {', '.join(types)}")
        if section is not None and not isinstance(section, dict):
            raise UserError(f"{path}.{name} is a section with keys of its own; got {_short(section)}")
    built = {}
    for name, section in (value or {}).items():
        try:
            built[name] = _build(types[name], section or {}, f"{path}.{name}.")
        except UserError as error:  # which takes the section for `objective`
            raise UserError(re.sub(r"^objective\b", f"{path}.{name}", str(error))) from error
    return built


def _section_type(hint: Any, field: Field, value: Any, path: str) -> type | None:
    """The dataclass of a field that is a section, required or not; where it has variants, the one that it names."""
    if "variants" in field.metadata:
        variants = field.metadata["variants"]
        name = value.get("name", next(iter(variants))) if isinstance(value, dict) else None
        if name is not None and (not isinstance(name, str) or name not in variants):
            raise UserError(f"{path}.name must be one of {', '.join(variants)}; got {name!r}")
        return variants[name] if name else next(iter(variants.values()))
    kinds = getattr(hint, "__args__", (hint,))
    return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)


def _with_prefix(message: str, prefix: str) -> str:
    """ "optim.lr must ..." said from within "student.optim." becomes "student.optim.lr must ..."."""
    section = prefix.rstrip(".").rpartition(".")
    if section[0] and message.startswith(f"{section[2]}."):
        return f"{section[0]}.{message}"
    return message


def _convert(hint: Any, value: Any, name: str) -> Any:
    """OmegaConf's own conversion to one field's type ("1e-4" to 1e-4, but no "four" to 4)."""
    origin = getattr(hint, "__origin__", None)
    if origin is tuple and hint.__args__[-1] is not ...:
        length = len(hint.__args__)
        if not isinstance(value, (list, tuple)) or len(value) != length:
            raise UserError(f"{name} must be a list of {length} numbers; got {_short(value)}")
        return tuple(_convert(kind, item, name) for kind, item in zip(hint.__args__, value, strict=True))
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{name} must be a list; got {_short(value)}")
        return origin(_convert(hint.__args__[0], item, name) for item in value)
    kinds = getattr(hint, "__args__", (hint,))
    if value is None and type(None) in kinds:
        return None
    if isinstance(value, list) and (
        lists := [kind for kind in kinds if getattr(kind, "__origin__", None) in (list, tuple)]
    ):
        return _convert(lists[0], value, name)
    scalars = [kind for kind in kinds if kind in _ARTICLES]
    if not scalars:
        raise UserError(f"{name} is a section with keys of its own; got {_short(value)}")
    kind = next((kind for kind in scalars if type(value) is kind), scalars[0])
    if kind is str and value is False:
        value = "no"  # which YAML reads as false, and train.mixed_precision as a word
    acceptable = {bool: (bool,), int: (int,), float: (int, float, str), str: (str,)}[kind]
    if not isinstance(value, acceptable) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {_short(value)}")
    try:
        converted = kind(value)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {_short(value)}") from error
    if type(converted) is int and not -(2**63) <= converted < 2**63:
        raise UserError(f"{name} must lie in [-2^63, 2^63); got {_short(value)}")
    if converted != converted:  # NaN would pass every check of a limit
        raise UserError(f"{name} must be {_ARTICLES[kind]}; got {_short(value)}")
    return converted


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:50]}.. ({len(shown)} characters)"


_ARTICLES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
