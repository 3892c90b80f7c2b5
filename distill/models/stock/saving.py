"""Writing the folders of stock transformers: see `distill.models.stock.folders`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import dar
from distill.files import write_text
from distill.models.lora import has_adapters, save_adapters

BACKBONE_FILE = "backbone.json"
WEIGHTS = "transformer"


def save_stock(backbone: Any, folder: Path) -> None:
    """Write adapters beside a reference to the weights that they adapt, or else all weights; and the routing."""
    adapted, routed = has_adapters(backbone), backbone.routing is not None
    source = backbone.source if adapted else Path(WEIGHTS)
    write_reference(folder, source, backbone.sample_shape, backbone.guidance)
    if routed:
        dar.save_routing(backbone.transformer, folder)
    if adapted:
        save_adapters(backbone, folder)
    else:
        with dar.stock_weights(backbone.transformer) if routed else nullcontext():
            backbone.transformer.save_pretrained(folder / WEIGHTS)


def write_reference(folder: Path, source: Path, sample_shape: Sequence[int], guidance: float | None) -> None:
    """Write `backbone.json`. source: a folder with the transformer's weights, or `transformer` for one beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    where = str(source) if source == Path(WEIGHTS) else str(source.resolve())
    said = {"transformer": where, "sample_shape": list(sample_shape), "guidance": guidance}
    write_text(folder / BACKBONE_FILE, json.dumps(said, indent=2) + "\n")
