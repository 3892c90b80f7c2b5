"""Pairs of a teacher: the noise that its sampler began with, and the sample that came out.

    FOLDER/pairs.json               whose pairs they are
    FOLDER/pairs_00000.safetensors  samples x0 and their conditions, `SHARD` at a time

The noise is not stored: image i of a seed always begins with the same (`distill.sampling.noise_for`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill.conditions import ConditionBatch, take_rows
from distill.errors import UserError
from distill.files import check_whole, read_json, seal_files, write_bytes, write_text

INDEX_FILE = "pairs.json"
SHARD = 1000
VERSION = 1
FIELDS = {"teacher": str, "sampler": str, "cfg_scale": float, "seed": int, "num": int, "sample_shape": list}


def weights_hash(model: Any) -> str:
    """A hash of all parameters, by name: two models with equal ones are the same teacher."""
    digest = hashlib.sha256()
    module: nn.Module = model
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def shard_path(folder: Path, first: int) -> Path:
    return folder / f"pairs_{first // SHARD:05d}.safetensors"


def write_shard(folder: Path, first: int, x0: Tensor, y: ConditionBatch) -> None:
    """Pairs `first`, .. of the list: x0 (N, *sample_shape), kept in float16, and conditions, N rows."""
    conditions = y if isinstance(y, dict) else {"": y}
    tensors = {"x0": x0.half(), **{f"y.{name}": part for name, part in conditions.items()}}
    write_bytes(shard_path(folder, first), save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


class Pairs:
    """The pairs in a folder.

    index: what `pairs.json` says: `teacher` (the hash of its weights), `sampler`, `cfg_scale`, `seed`, `num`,
        `sample_shape`.

    Raises: UserError where a file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.index = read_index(self.folder)
        missing = missing_shards(self.folder, self.index["num"])
        if missing:
            raise UserError(
                f"{self.folder} lacks {len(missing)} of its files, {missing[0].name} first; go on making it"
            )
        check_whole(self.folder)
        parts = [_read(shard_path(self.folder, first)) for first in range(0, self.index["num"], SHARD)]
        self.x0 = torch.cat([part["x0"] for part in parts])
        names = [name for name in parts[0] if name != "x0"]
        whole = {name.removeprefix("y."): torch.cat([part[name] for part in parts]) for name in names}
        self.y: ConditionBatch = whole[""] if set(whole) == {""} else whole

    def __len__(self) -> int:
        return len(self.x0)

    def rows(self, indices: Tensor) -> tuple[Tensor, ConditionBatch]:
        """x0 in float32 and conditions of some pairs."""
        return self.x0[indices].float(), take_rows(self.y, indices)


def read_index(folder: Path) -> dict[str, Any]:
    """What `pairs.json` says. Raises: UserError where it is missing, damaged or of another version."""
    file = folder / INDEX_FILE
    if not file.is_file():
        raise UserError(f"{folder} holds no pairs (no {INDEX_FILE}); make some with scripts/make_pairs.py")
    version = read_json(file).get("version")
    if version != VERSION:
        raise UserError(f"{file} is of version {version}; this one reads {VERSION}")
    index = read_json(file, FIELDS)
    if index["num"] < 1:
        raise UserError(f"{file} is damaged: num must be at least 1; got {index['num']}")
    return index


def write_index(folder: Path, index: dict[str, Any]) -> None:
    write_text(folder / INDEX_FILE, json.dumps({"version": VERSION, **index}, indent=2) + "\n")


def finish(folder: Path, num: int, fresh: Container[str]) -> None:
    """Write checksums of `num` pairs; fresh: names of the files that were written just now."""
    names = [INDEX_FILE, *(shard_path(folder, first).name for first in range(0, num, SHARD))]
    seal_files(folder, names, fresh)


def missing_shards(folder: Path, num: int) -> list[Path]:
    return [path for first in range(0, num, SHARD) if not (path := shard_path(folder, first)).is_file()]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}; remove it and make it again") from error
