"""A model from a list of tensors, without a second copy of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dar.checkpoints.printable import listed
from dar.sit import SiT, SiTConfig


def assemble(path: Path, config: SiTConfig, tensors: dict[str, Tensor]) -> SiT:
    """The model, in float32, in evaluation mode. float32 tensors become its parameters as they are, mapped or not.

    Raises: ValueError naming what is missing, left over, or of a wrong shape.
    """
    with torch.device("meta"):
        model = SiT(config)
    check_fit(path, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, tensors)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval()


def check_fit(path: Path, expected: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> None:
    """Raises: ValueError naming a few of the tensors that are missing, left over or of a wrong shape or type."""
    shared = expected.keys() & tensors.keys()
    problems = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "left over": sorted(tensors.keys() - expected.keys()),
        "of a wrong shape": [
            f"{name} {tuple(tensors[name].shape)} for {expected[name]}"
            for name in sorted(shared)
            if tuple(tensors[name].shape) != expected[name]
        ],
        "not floating point": sorted(name for name in shared if not tensors[name].is_floating_point()),
    }
    found = [f"{len(names)} {what} ({listed(names)})" for what, names in problems.items() if names]
    if found:
        raise ValueError(f"{path}: tensors that do not fit a SiT: {'; '.join(found)}")
