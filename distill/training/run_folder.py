"""The folder of a run: who may write into it, and the configuration that it was started with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from distill.config import CONFIG_FILE, RunConfig, TrainConfig, build_config, config_to_yaml, flat_values, read_values
from distill.errors import UserError
from distill.files import write_text
from distill.training.checkpoint import checkpoints
from distill.training.devices import start_trackers


def open_run(config: RunConfig | TrainConfig, accelerator: Accelerator, *, resume: bool) -> Path:
    """Claim the folder `config.output` for all processes and start the trackers.

    Raises: UserError as `claim_folder`.
    """
    folder = Path(config.output).expanduser()
    if accelerator.is_main_process:
        claim_folder(folder, config, resume=resume)
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    return folder


def claim_folder(folder: Path, config: Any, *, resume: bool) -> None:
    """Save the resolved configuration into a new folder, or check that a resumed run has the same configuration.

    The settings under `evaluate` may change between parts of a run, and `output`, where the folder was moved or copied.

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
    return [f"{name} is {old} there, {new} here" for name, old, new in pairs if old != new]
