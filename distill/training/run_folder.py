"""The folder of a run: who may write into it, and the configuration that it was started with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.assets import EMBEDDED
from distill.config import CONFIG_FILE, TrainingConfig, build_config, config_to_yaml, flat_values, read_values
from distill.data.base import Dataset
from distill.errors import UserError, writing
from distill.files import locked, read_json, resolved, write_text
from distill.files.folders import contents
from distill.processes import Processes
from distill.progress import logger
from distill.training.checkpoint import checkpoints
from distill.training.devices import start_trackers

DATA_FILE = "data.json"
MAY_CHANGE = ("output", "train.accumulation")
"""Settings that do not change what a run computes: where its folder is, and how its batch is cut up."""


@dataclass(frozen=True)
class RunFolder:
    """folder: of which this process is the one writer. resumes: whether it holds a checkpoint to go on from."""

    folder: Path
    resumes: bool


@contextmanager
def opened_run(
    config: TrainingConfig, accelerator: Accelerator, *, resume: bool, data: Dataset | None = None
) -> Iterator[RunFolder]:
    """Claim the folder `config.output` for all processes, until the end of the context, and start the trackers.

    Raises: UserError, in all processes, as `locked` and `claim_folder`; if the folder lies inside the data or the
        teacher; and if a resumed run would go on with other data.
    """
    folder = resolved(config.output)
    _check_outside(folder, config)
    with ExitStack() as stack:

        def claim() -> bool:
            if resume and not folder.is_dir():
                raise UserError(f"--resume: {folder} holds no run (no {CONFIG_FILE})")
            stack.enter_context(locked(folder))
            resumes = claim_folder(folder, config, resume=resume)
            if data is not None:
                now = _fingerprint(data)
                if resumes:
                    _check_data(folder / DATA_FILE, now)
                write_text(folder / DATA_FILE, json.dumps(now) + "\n")
            return resumes

        run = RunFolder(folder, Processes.all().from_main(claim))
        with writing(folder):
            start_trackers(accelerator, config)
            yield run


def _check_outside(folder: Path, config: TrainingConfig) -> None:
    for section in ("data", "teacher", "start"):
        path = getattr(getattr(config, section, None), "path", None)
        if path and path != EMBEDDED and folder.is_relative_to(Path(path).expanduser().resolve()):
            raise UserError(f"output = {folder} lies inside {section}.path = {path}; choose a folder outside of it")


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


def claim_folder(folder: Path, config: Any, *, resume: bool) -> bool:
    """Save the resolved configuration into a new folder, or check that a resumed run has the same configuration.

    Between parts of a run the settings under `evaluate` may change, those in `MAY_CHANGE` (the folder was moved, or
    there are other devices), and `train.steps` may grow. A run that was stopped before its first checkpoint begins
    anew, whether `resume` says so or not: what starts it again may always be the same command.

    Returns: whether there is a checkpoint to go on from.
    Raises: UserError if the folder holds another run, or if `resume` finds no run or a different configuration.
    """
    saved = folder / CONFIG_FILE
    found = contents(folder)
    has_checkpoint = bool(checkpoints(folder))
    if found and resume and not saved.is_file():
        raise UserError(f"--resume: {folder} holds no run (no {CONFIG_FILE})")
    if found and not resume and (has_checkpoint or not _is_begun(saved, config)):
        raise UserError(
            f"output = {folder} is not empty; choose another, remove it, or continue the run in it with --resume"
        )
    if found and resume:
        different = _differences(flat_values(_then(saved, config)), flat_values(config))
        if different:
            raise UserError(f"--resume: the configuration differs from {saved}: {'; '.join(different[:3])}")
    if found and not has_checkpoint:
        logger.info(f"{folder}: its run was stopped before the first checkpoint, and begins anew")
    write_text(saved, config_to_yaml(config))
    return has_checkpoint


def _then(saved: Path, config: Any) -> Any:
    """The configuration of a run; a setting that did not exist when it was started had its default value."""
    return build_config(type(config), read_values(saved))


def _is_begun(saved: Path, config: Any) -> bool:
    """Whether the folder is that of a run of this configuration, as it was written here and not by someone's hand."""
    if not saved.is_file():
        return False
    then = _then(saved, config)
    written = saved.read_bytes() == config_to_yaml(then).encode()
    return written and not _differences(flat_values(then), flat_values(config))


def _differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    names = [name for name in {**there, **here} if name not in MAY_CHANGE and not name.startswith("evaluate.")]
    pairs = [(name, there.get(name, "not set"), here.get(name, "not set")) for name in names]
    return [
        f"{name} is {old} there, {new} here" for name, old, new in pairs if old != new and not _extends(name, old, new)
    ]


def _extends(name: str, old: Any, new: Any) -> bool:
    return name == "train.steps" and isinstance(old, int) and isinstance(new, int) and new > old
