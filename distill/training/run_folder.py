"""The folder of a run: who may write into it, and the configuration that it was started with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.assets import EMBEDDED
from distill.config import CONFIG_FILE, RunConfig, TrainConfig, build_config, config_to_yaml, flat_values, read_values
from distill.data.base import Dataset
from distill.errors import UserError
from distill.files import read_json, write_text
from distill.training.checkpoint import checkpoints
from distill.training.devices import start_trackers

DATA_FILE = "data.json"


def open_run(
    config: RunConfig | TrainConfig, accelerator: Accelerator, *, resume: bool, data: Dataset | None = None
) -> Path:
    """Claim the folder `config.output` for all processes and start the trackers.

    Raises: UserError as `claim_folder`; if the folder lies inside the data or the teacher; and if a resumed run would
        go on with other data.
    """
    folder = Path(config.output).expanduser()
    _check_outside(folder, config)
    if accelerator.is_main_process:
        now = None if data is None else _fingerprint(data)
        if resume and now:
            _check_data(folder / DATA_FILE, now)
        claim_folder(folder, config, resume=resume)
        if now:
            write_text(folder / DATA_FILE, json.dumps(now) + "\n")
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    return folder


def _check_outside(folder: Path, config: RunConfig | TrainConfig) -> None:
    sources = {"data.path": config.data.path if config.data else None}
    if isinstance(config, RunConfig):
        sources["teacher.path"] = None if config.teacher.path == EMBEDDED else config.teacher.path
    else:
        sources["start.path"] = None if config.start.path == EMBEDDED else config.start.path
    for name, path in sources.items():
        if path and folder.resolve().is_relative_to(Path(path).expanduser().resolve()):
            raise UserError(f"output = {folder} lies inside {name} = {path}; choose a folder outside of it")


def _fingerprint(data: Dataset) -> dict[str, Any]:
    labels = hashlib.sha256(data.labels.numpy().tobytes()).hexdigest()[:16]
    return {"num_samples": len(data), "sample_shape": list(data.sample_shape), "labels_sha256": labels}


def _check_data(file: Path, now: dict[str, Any]) -> None:
    """See that the data are those that the run began with; runs of earlier versions have no such file."""
    if not file.is_file():
        return
    then = read_json(file)
    different = [f"{name} was {then.get(name)}, is {value}" for name, value in now.items() if then.get(name) != value]
    if different:
        raise UserError(f"--resume: the data have changed since the run began: {'; '.join(different)}")


def claim_folder(folder: Path, config: Any, *, resume: bool) -> None:
    """Save the resolved configuration into a new folder, or check that a resumed run has the same configuration.

    Between parts of a run the settings under `evaluate` may change, `output` (the folder was moved or copied), and
    `train.steps` may grow.

    Raises: UserError if the folder holds another run, or if `resume` finds no run or a different configuration.
    """
    saved = folder / CONFIG_FILE
    if resume:
        if not saved.is_file():
            raise UserError(f"--resume: {folder} holds no run (no {CONFIG_FILE})")
        # A setting that did not exist when the run started had its default value.
        then = build_config(type(config), read_values(saved))
        different = _differences(flat_values(then), flat_values(config))
        if different:
            raise UserError(f"--resume: the configuration differs from {saved}: {'; '.join(different[:3])}")
        if not checkpoints(folder):
            raise UserError(f"--resume: {folder} holds no checkpoint yet; remove it and start anew")
    elif folder.exists() and any(folder.iterdir()):
        raise UserError(
            f"output = {folder} is not empty; choose another, remove it, or continue the run in it with --resume"
        )
    write_text(saved, config_to_yaml(config))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    names = [name for name in {**there, **here} if name != "output" and not name.startswith("evaluate.")]
    pairs = [(name, there.get(name, "not set"), here.get(name, "not set")) for name in names]
    return [
        f"{name} is {old} there, {new} here" for name, old, new in pairs if old != new and not _extends(name, old, new)
    ]


def _extends(name: str, old: Any, new: Any) -> bool:
    return name == "train.steps" and isinstance(old, int) and isinstance(new, int) and new > old
