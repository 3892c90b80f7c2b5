"""An attached routing on disk: routing.json and routing.safetensors, beside the model's own files or alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from dar.attached import attach_routing, detach_routing, routing_of
from dar.checkpoints.contents import read_json, read_safetensors
from dar.routing.base import routing_config_from

CONFIG = "routing.json"
WEIGHTS = "routing.safetensors"
_FIELDS = ("architecture", "routing", "sources")


def save_routing(model: Any, folder: str | Path) -> None:
    """Write the routing of `model`, and nothing else of it, into a folder that is there.

    Raises: ValueError for a model without an attached routing.
    """
    routing = routing_of(model)
    config = {"architecture": type(model).__name__, "routing": asdict(routing.config), "sources": routing.sources}
    save_file(routing.tensors(), Path(folder) / WEIGHTS)
    (Path(folder) / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_routing(model: Any, folder: str | Path) -> Any:
    """Attach the routing in `folder` to a stock model of the architecture that it was saved from, in place.

    Returns: the model. Raises: FileNotFoundError; ValueError for a damaged folder, or one of another model.
    """
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}")
    config = read_json(folder / CONFIG)
    if set(config) != set(_FIELDS):
        raise ValueError(f"{folder / CONFIG} must hold {', '.join(_FIELDS)}; it holds {', '.join(sorted(config))}")
    if config["architecture"] != type(model).__name__:
        raise ValueError(f"{folder} holds the routing of a {config['architecture']}; this is a {type(model).__name__}")
    tensors = read_safetensors(folder / WEIGHTS)
    try:
        attach_routing(model, routing_config_from(config["routing"]), sources=config["sources"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.routing.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != shapes:
        detach_routing(model)
        name = next(name for name in sorted(shapes.keys() | found.keys()) if shapes.get(name) != found.get(name))
        raise ValueError(
            f"{folder / WEIGHTS} is of another model: {name} is {found.get(name, 'missing')} there, "
            f"{shapes.get(name, 'unknown')} in this {type(model).__name__}"
        )
    model.routing.load_state_dict(tensors)
    return model


@contextmanager
def stock_weights(model: Any) -> Iterator[Any]:
    """The model with its own weights alone in its state dict, to be saved by its library; it cannot be called."""
    routing = routing_of(model)
    del model.routing
    try:
        yield model
    finally:
        model.routing = routing
