"""Folders of stock transformers: diffusers' own, and ours, which say more.

FOLDER/backbone.json        where the transformer's weights are ("transformer" beside it, or another folder), the
                            shape of a sample, the guidance scale that it is told
FOLDER/routing.*            an attached routing          FOLDER/adapter_*   LoRA, in peft's format
FOLDER/prompts_from.json    where its prompts are
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

import dar
from dar.checkpoints.diffusers import check_not_exported
from distill.errors import UserError
from distill.files import read_json
from distill.models.lora import ADAPTER_CONFIG, load_adapters
from distill.models.stock.backbone import StockBackbone
from distill.models.stock.base import STOCK
from distill.models.stock.saving import BACKBONE_FILE, WEIGHTS

ROUTING = "routing.json"


def transformer_folder(folder: Path) -> Path | None:
    """Where the transformer of a folder of diffusers is, if it is one that is known here: a pipeline's, or its own."""
    for candidate in (folder / WEIGHTS, folder):
        config = candidate / "config.json"
        if config.is_file() and read_json(config).get("_class_name") in STOCK:
            return candidate
    return None


def is_stock(folder: Path) -> bool:
    return (folder / BACKBONE_FILE).is_file() or transformer_folder(folder) is not None


def load_stock(folder: Path) -> StockBackbone:
    """A stock transformer, in the precision of its files, with its routing and adapters.

    folder: of diffusers, a pipeline or a transformer; or one that `save_stock` or `write_reference` wrote.
    Raises: UserError, which names file and field, where something is missing, damaged, or does not fit.
    """
    said = said_in(folder)
    source = source_of(folder, said)
    backbone = StockBackbone(_transformer(source), source, said.get("sample_shape"), said.get("guidance"))
    if (folder / ROUTING).is_file():
        dar.load_routing(backbone.transformer, folder)
    if (folder / ADAPTER_CONFIG).is_file():
        load_adapters(backbone, folder)
    return backbone


def said_in(folder: Path) -> dict[str, Any]:
    """The fields of `backbone.json`, checked."""
    file = folder / BACKBONE_FILE
    if not file.is_file():
        return {}
    said = read_json(file)
    unknown = sorted(said.keys() - {"transformer", "sample_shape", "guidance"})
    if unknown:
        raise UserError(f"{file} has fields this version does not know: {', '.join(unknown)}")
    if not isinstance(said.get("transformer"), str):
        raise UserError(f"{file}: transformer must be the path of a folder; got {said.get('transformer')!r}")
    shape = said.get("sample_shape")
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) not in (3, 4) or not all(type(size) is int and 1 <= size <= 2**20 for size in sizes):
        raise UserError(f"{file}: sample_shape must be [C, H, W] or [C, F, H, W]; got {shape!r}")
    guidance = said.get("guidance")
    if guidance is not None and not (isinstance(guidance, (int, float)) and 0 <= guidance < 1000):
        raise UserError(f"{file}: guidance must be null or a number from 0; got {guidance!r}")
    return said


def source_of(folder: Path, said: dict[str, Any]) -> Path:
    if not said:
        found = transformer_folder(folder)
        assert found is not None
        return found
    source = (folder / said["transformer"]).resolve()  # an absolute path stays what it is
    if transformer_folder(source) != source:
        raise UserError(f"{folder / BACKBONE_FILE}: transformer = {source} holds no transformer that is known here")
    return source


def _dtype(source: Path) -> torch.dtype:
    """Of most tensors in the folder's first file."""
    file = min(source.glob("*.safetensors"), default=None)
    if file is None:
        raise OSError("it holds no .safetensors file")
    with safe_open(file, framework="pt") as weights:
        names = Counter(weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get(names.most_common(1)[0][0], torch.float32)


def _transformer(source: Path) -> Any:
    """Raises: UserError where diffusers is missing or cannot load it."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(f"{source} needs diffusers: pip install 'dar-distill[latents]'") from error
    config = read_json(source / "config.json")
    check_not_exported(source / "config.json", config)
    name = config["_class_name"]
    loaded = getattr(diffusers, name)
    try:
        # Tensors from safetensors alone: a pickle would run what it says.
        return loaded.from_pretrained(source, torch_dtype=_dtype(source), use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"{source} cannot be loaded as a {name}: {str(error).strip().splitlines()[0]}") from error
