"""The model that `train` starts from: a new one or one from a folder, and which of its parameters are trainable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dar import SiT
from distill.config import StartConfig, TrainConfig
from distill.errors import UserError
from distill.models import Backbone, load_model
from distill.models.lora import add_adapters


def _all(model: Any, start: StartConfig) -> None:
    """Everything except the fixed position embedding, as `SiT` is constructed."""


def _routing(model: Any, start: StartConfig) -> None:
    routing = getattr(model, "routing", None)
    if routing is None or not any(True for _ in routing.parameters()):
        kind = model.config.routing.kind if routing is not None else "none"
        raise UserError(
            f"start.trainable = {start.trainable}: routing {kind!r} has no parameters to train; "
            "give the model one with `dar-distill retrofit`"
        )
    model.requires_grad_(False)
    routing.requires_grad_(True)


def _lora(model: Any, start: StartConfig) -> None:
    assert start.path is not None
    add_adapters(model, start.lora_rank, base=start.path, field="start.trainable")


TRAINABLE: dict[str, Callable[[Any, StartConfig], None]] = {"all": _all, "routing": _routing, "lora": _lora}


def starting_model(config: TrainConfig) -> Backbone:
    """A new model of `config.model`, or the one in `config.start.path` with `config.start.trainable` applied.

    With `lora`, the linear layers get adapters that have no effect yet.

    Raises: UserError if there is nothing to train or peft is not installed.
    """
    if config.start.path is None:
        assert config.model is not None
        return SiT(config.model)
    model = load_model(config.start.path)
    TRAINABLE[config.start.trainable](model, config.start)
    return model
