"""What lies at a path, before anyone says which format it is."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dar.checkpoints.pickles import read_pickle
from dar.checkpoints.printable import listed, printable

ONLY = "only"  # the name of the one set of weights in a file that does not name it
OWN_WEIGHTS = "model.safetensors"
SETS = ("ema", "model")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass(frozen=True)
class Contents:
    """A file or a folder, looked at.

    weights: of a file, by set: "ema" and "model", or "only"; names without the wrappers' prefixes.
    args: of a file, the training arguments.
    config: of a folder, its config.json; `pipeline` its model_index.json; `files` the names in it.
    """

    path: Path
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return not self.weights

    @property
    def any_weights(self) -> dict[str, Tensor]:
        """Some set of a file's weights, to tell the format by; empty for a folder."""
        return next(iter(self.weights.values()), {})

    def chosen_weights(self, weights: str) -> dict[str, Tensor]:
        """The set that the caller asked for. A file of one unnamed set has published, averaged weights.

        Raises: ValueError where there is no such set.
        """
        if ONLY in self.weights:
            self.check_one_set(weights)
            return self.weights[ONLY]
        if weights not in self.weights:
            raise ValueError(f"{self.path} has no weights {weights!r}; it holds only {', '.join(self.weights)!r}")
        return self.weights[weights]

    def check_one_set(self, weights: str) -> None:
        """Of what holds one unnamed set, only the default can be asked for. Raises: ValueError."""
        if weights != "ema":
            raise ValueError(f"{self.path} has no weights {weights!r}; it holds one set without a name")


def read_contents(path: str | Path) -> Contents:
    """Look at a file or a folder.

    Raises: FileNotFoundError; ValueError naming the file where it is damaged, asks to run code, or its
        nesting has more than one reading.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        config, pipeline = (read_json(path / name) for name in ("config.json", "model_index.json"))
        return Contents(path, config=config, pipeline=pipeline, files=tuple(sorted(p.name for p in path.iterdir())))
    if path.is_file() and _is_safetensors(path):
        if path.name == OWN_WEIGHTS and "routing" in read_json(path.parent / "config.json"):
            # By its names alone one of ours would pass for a file of SiT's, whose velocity points the other way.
            raise ValueError(f"{path} is part of the model folder {path.parent}; give the folder")
        return Contents(path, weights={ONLY: stripped(path, read_safetensors(path))})
    return _from_top_level(path, read_pickle(path))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors, mapped. Raises: ValueError naming the file where it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a file; none where there is no file. Raises: ValueError naming a damaged one."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object of fields; it holds a {type(config).__name__}")
    return config


def stripped(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers put in front, in any order and number."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name
        while prefix := next((p for p in WRAPPERS if bare.startswith(p)), None):
            bare = bare.removeprefix(prefix)
        if bare in result:
            raise ValueError(f"{path} holds {printable(bare)} twice, with and without a wrapper's prefix")
        result[bare] = tensor
    return result


def _from_top_level(path: Path, top: Any) -> Contents:
    if not isinstance(top, dict) or not top:
        raise ValueError(f"{path} holds a {type(top).__name__}, not a dictionary of tensors")
    if _is_state_dict(top):
        return Contents(path, weights={ONLY: stripped(path, top)})
    sets = {name: top[name] for name in SETS if _is_state_dict(top.get(name))}
    if _is_state_dict(top.get("state_dict")):
        sets[ONLY] = top["state_dict"]
    if not sets or (ONLY in sets and len(sets) > 1):
        what = "no weights" if not sets else "weights in more than one place"
        raise ValueError(f"{path}: {what} among {listed(top, 6)}; expected tensors, or ema and model, or state_dict")
    args = top.get("args", {})
    args = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    return Contents(path, weights={name: stripped(path, state) for name, state in sets.items()}, args=args)


def _is_state_dict(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _is_safetensors(path: Path) -> bool:
    # Eight bytes of length, then the header, a JSON object.
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
