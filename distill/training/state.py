"""What a checkpoint holds: names of its files, what is in each, and how it is taken up again.

Of a model it is what learns: frozen parameters are loaded again from the model's folder, and several models may share
them. Names and formats are accelerate's, which reads them; sharded models are torch.distributed.checkpoint's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.checkpointing import load_accelerator_state, load_custom_state
from accelerate.utils import OPTIMIZER_NAME, RNG_STATE_NAME, SAFE_MODEL_NAME, SCALER_NAME
from accelerate.utils.constants import FSDP_MODEL_NAME
from safetensors.torch import save_file
from torch import nn

from distill.models.parameters import frozen_parameters

SHARDED = ""  # the ending of what all processes write together, a folder
WEIGHTS = ".safetensors"


def state_of(accelerator: Accelerator) -> dict[str, Any]:
    """By the name of its file, what this process writes of everything that was prepared or registered.

    Not copies; all processes have to ask, since a sharded model's averages are gathered.
    """
    files: dict[str, Any] = {f"{RNG_STATE_NAME}_{accelerator.process_index}.pkl": _random_states(accelerator)}
    if accelerator.is_fsdp2:
        files |= dict(_sharded(accelerator))
    registered = {f"custom_checkpoint_{i}.pkl": one.state_dict() for i, one in enumerate(accelerator._custom_objects)}
    if not accelerator.is_main_process:
        return files
    if not accelerator.is_fsdp2:
        files |= {weights_file(i): _learnt(model) for i, model in enumerate(accelerator._models)}
        optimizers = accelerator._optimizers
        files |= {f"{_numbered(OPTIMIZER_NAME, i)}.bin": one.state_dict() for i, one in enumerate(optimizers)}
    if accelerator.scaler is not None:
        files[SCALER_NAME] = accelerator.scaler.state_dict()
    return files | registered


def write_state(folder: Path, files: dict[str, Any], group: Any) -> None:
    """Write what `state_of` gave, or a copy of it. group: of all processes, in which sharded parts are agreed on."""
    for name, content in files.items():
        path = folder / name
        if path.suffix == SHARDED:
            from torch.distributed.checkpoint.state_dict_saver import save

            save(content, checkpoint_id=path, process_group=group)
        elif path.suffix == WEIGHTS:
            save_file(content, path, metadata={"format": "pt"})
        else:
            with path.open("xb") as file:  # given a name torch does not say that the disk is full
                torch.save(content, file)


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Take up what `write_state` wrote, or accelerate in earlier versions: those hold frozen parameters where sharded.

    Raises: whatever torch and accelerate do with files of something else; a CheckpointException, which is no Exception,
        where sharded parts do not fit.
    """
    if accelerator.is_fsdp2:
        _load_sharded(accelerator, folder)
    models, optimizers = ([], []) if accelerator.is_fsdp2 else (accelerator._models, accelerator._optimizers)
    load_accelerator_state(
        str(folder),
        models,
        optimizers,
        [],
        [],
        accelerator.process_index,
        accelerator.scaler,
        "on_device" if accelerator.multi_device else "cpu",
        strict=False,  # there are no frozen parameters
    )
    for i, registered in enumerate(accelerator._custom_objects):
        load_custom_state(registered, str(folder), i)


def _numbered(name: str, i: int) -> str:
    return f"{name}_{i}" if i else name


def weights_file(i: int) -> str:
    """The name of the file with the weights of model `i`, where it is not sharded."""
    return f"{_numbered(SAFE_MODEL_NAME, i)}{WEIGHTS}"


def _learnt(model: nn.Module) -> dict[str, torch.Tensor]:
    frozen = frozen_parameters(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _random_states(accelerator: Accelerator) -> dict[str, Any]:
    """Of this process, under the names by which accelerate takes them up."""
    states = {
        "step": accelerator.step,
        "random_state": random.getstate(),
        "numpy_random_seed": np.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["torch_cuda_manual_seed"] = torch.cuda.get_rng_state_all()
    return states


def _sharded(accelerator: Accelerator) -> Iterator[tuple[str, Any]]:
    """Names and shards of models and their optimizers, which are numbered alike."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    options = StateDictOptions(ignore_frozen_params=True)
    for i, (model, optimizer) in enumerate(zip(accelerator._models, accelerator._optimizers, strict=True)):
        yield f"{FSDP_MODEL_NAME}_{i}", {"model": get_model_state_dict(model, options=options)}
        yield f"{OPTIMIZER_NAME}_{i}", {"optimizer": get_optimizer_state_dict(model, optimizer)}


def _load_sharded(accelerator: Accelerator, folder: Path) -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    parts = dict(_sharded(accelerator))
    for name, part in parts.items():
        load(part, checkpoint_id=folder / name)
    for i, (model, optimizer) in enumerate(zip(accelerator._models, accelerator._optimizers, strict=True)):
        weights = parts[f"{FSDP_MODEL_NAME}_{i}"]["model"]
        set_model_state_dict(model, weights, options=StateDictOptions(strict=False))
        set_optimizer_state_dict(model, optimizer, parts[f"{OPTIMIZER_NAME}_{i}"]["optimizer"])
