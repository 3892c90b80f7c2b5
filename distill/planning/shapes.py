"""The shape of a model that may not exist yet: a plan needs no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from omegaconf import OmegaConf

from dar import RoutingConfig, SiTConfig, preset
from dar.folder import CONFIG_FILE
from distill.config import build_config, merge_values
from distill.errors import UserError
from distill.models import model_folder
from distill.models.stock.folders import is_stock
from distill.planning.stock import NAMED, stock_subject
from distill.planning.subjects import Subject


def shape_in(path: str, field: str) -> SiTConfig | Subject:
    """The shape of the model in a folder (or `embedded`), read from its configurations only.

    Raises: UserError, which names `field` and says what to do if there is no such file.
    """
    folder = model_folder(path)
    if is_stock(folder):
        return stock_subject(folder)
    try:
        values = json.loads((folder / CONFIG_FILE).read_bytes())
        return SiTConfig(**values)
    except FileNotFoundError as error:
        raise UserError(
            f"{field} = {path} holds no {CONFIG_FILE}; make the folder (dar-distill convert, retrofit or train), or "
            "let `dar-distill plan` go by a named shape: --model SiT-XL/2"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{Path(path) / CONFIG_FILE} is no valid SiTConfig: {error}") from error


def named_shape(model: Sequence[str]) -> SiTConfig | Subject:
    """A preset without routing, as in public checkpoints, with fields replaced: ["SiT-XL/2", "routing.kind=dar"].

    Of a stock transformer: ["Qwen-Image", "sample_shape=[16,64,64]", "routing.query=static"].

    Raises: UserError for an unknown name or field, or a bad value.
    """
    name, *changes = model
    for change in changes:
        if "=" not in change:
            raise UserError(f"--model {name} {change}: give fields as key=value, such as routing.kind=dar")
    if name in NAMED:
        return _named_stock(name, changes)
    try:
        base = asdict(preset(name, RoutingConfig(kind="residual")))
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(changes)))
        assert isinstance(given, dict)
        return build_config(SiTConfig, merge_values(base, given))
    except ValueError as error:
        raise UserError(f"--model: {error}") from error


def _named_stock(name: str, changes: Sequence[str]) -> Subject:
    """A public stock transformer; any field of `routing` attaches one that starts as the stock model."""
    parsed = OmegaConf.to_container(OmegaConf.from_dotlist(list(changes)))
    assert isinstance(parsed, dict)
    given = {str(field): value for field, value in parsed.items()}
    unknown = sorted(set(given) - {"routing", "sample_shape", "text_tokens", "sources"})
    if unknown:
        raise UserError(f"--model {name}: {unknown[0]} is not one of routing, sample_shape, text_tokens, sources")
    try:
        routing = RoutingConfig(**{"scale": "count", **given.pop("routing")}) if "routing" in given else None
    except (TypeError, ValueError) as error:
        raise UserError(f"--model {name}: {error}") from error
    shape = given.pop("sample_shape", None)
    return replace(NAMED[name], routing=routing, given_shape=None if shape is None else tuple(shape), **given)
