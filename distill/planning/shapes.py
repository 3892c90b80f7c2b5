"""The shape of a model that may not exist yet: a plan needs no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from dar import RoutingConfig, SiTConfig, preset
from dar.folder import CONFIG_FILE
from distill.assets import resolve
from distill.config import build_config, merge_values
from distill.errors import UserError


def shape_in(path: str, field: str) -> SiTConfig:
    """The shape of the model in a folder (or `embedded`), read from its config.json only.

    Raises: UserError, which names `field` and says what to do if there is no such file.
    """
    folder = resolve(path, "teacher")
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


def named_shape(model: Sequence[str]) -> SiTConfig:
    """A preset without routing, as in public checkpoints, with fields replaced: ["SiT-XL/2", "routing.kind=dar"].

    Raises: UserError for an unknown name or field, or a bad value.
    """
    name, *changes = model
    for change in changes:
        if "=" not in change:
            raise UserError(f"--model {name} {change}: give fields as key=value, such as routing.kind=dar")
    try:
        base = asdict(preset(name, RoutingConfig(kind="residual")))
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(changes)))
        assert isinstance(given, dict)
        return build_config(SiTConfig, merge_values(base, given))
    except ValueError as error:
        raise UserError(f"--model: {error}") from error
