"""The model that `train` starts from: a new one or one from a folder, and which of its parameters are trainable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dar import SiT
from distill.conditions import ClassLabels, Condition, condition_of
from distill.config import StartConfig, TrainConfig
from distill.errors import UserError
from distill.models import Backbone, load_model, set_classes
from distill.models.lora import add_adapters
from distill.training.label_table import with_classes


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


def starting_model(config: TrainConfig, data: Condition) -> Backbone:
    """A new model of `config.model`, or the one in `config.start.path` with `config.start.trainable` applied.

    With `lora`, the linear layers get adapters that have no effect yet. A model with classes says in its condition
    which of them were trained so far: of a new one, none. A model that is told prompts gets those of the data in the
    place of its own.

    Args:
        data: the condition of the data, for `config.start.classes`.

    Raises: UserError if there is nothing to train, peft is not installed, or classes or prompts cannot be replaced.
    """
    if config.start.path is None:
        assert config.model is not None
        model = SiT(config.model)
        set_classes(model, ClassLabels(model.null_label, ()))
        return model
    model = load_model(config.start.path, config.data.prompts)
    if config.start.classes is not None:
        model = _with_classes(model, data, config.start.classes)
    TRAINABLE[config.start.trainable](model, config.start)
    return model


def _with_classes(model: Backbone, data: Condition, setting: str) -> Backbone:
    old = condition_of(model)
    if not (isinstance(model, SiT) and isinstance(old, ClassLabels) and isinstance(data, ClassLabels)):
        raise UserError(f"start.classes is for a SiT and data with classes; these are {old} and {data}")
    made, taken_over = with_classes(model, old, data, setting)
    set_classes(made, ClassLabels(data.num_classes, tuple(taken_over), data.class_names))
    return made
