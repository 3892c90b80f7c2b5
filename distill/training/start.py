"""The model that `train` begins with: new or from a folder, and which of its parameters learn."""

from __future__ import annotations

from collections.abc import Callable

from dar import SiT
from distill.assets import resolve
from distill.config import StartConfig, TrainConfig
from distill.errors import UserError
from distill.models.lora import add_adapters


def _all(model: SiT, start: StartConfig) -> None:
    """Everything but the fixed positions, as the model is built."""


def _routing(model: SiT, start: StartConfig) -> None:
    if not any(True for _ in model.routing.parameters()):
        raise UserError(
            f"start.trainable = {start.trainable}: routing {model.config.routing.kind!r} has no parameters to train; "
            "give the model one with `dar-distill retrofit`"
        )
    model.requires_grad_(False)
    model.routing.requires_grad_(True)


def _lora(model: SiT, start: StartConfig) -> None:
    assert start.path is not None
    add_adapters(model, start.lora_rank, base=start.path, field="start.trainable")


TRAINABLE: dict[str, Callable[[SiT, StartConfig], None]] = {"all": _all, "routing": _routing, "lora": _lora}


def starting_model(config: TrainConfig) -> SiT:
    """A new model of `config.model`, or the one in `config.start.path` with what does not learn frozen.

    With `lora`, linear layers have gained adapters, which change nothing yet.

    Raises: UserError where there is nothing to train or peft is missing.
    """
    if config.start.path is None:
        assert config.model is not None
        return SiT(config.model)
    model = SiT.from_pretrained(resolve(config.start.path, "teacher"))
    TRAINABLE[config.start.trainable](model, config.start)
    return model
