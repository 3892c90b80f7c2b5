"""Frozen weights in the precision that a training computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def frozen_in(precision: str, model: nn.Module) -> Iterator[None]:
    """Hold the frozen linear weights of a transformer's blocks in `precision`: half the memory, and nothing to cast.

    Autocast rounds them alike in every pass, so the model computes the same under autocast, bit for bit, and nothing
    without it. So do others that share its parameters. Afterwards the parameters are what they were; meanwhile the
    CPU has them.

    Args:
        precision: as `train.mixed_precision`; with `no`, and in a model without `blocks`, nothing changes.
    """
    dtype = COMPUTED_IN.get(precision)
    held: list[tuple[nn.Parameter, Tensor]] = []
    layers = (layer for layer in getattr(model, "blocks", nn.ModuleList()).modules() if isinstance(layer, nn.Linear))
    for parameter in {p for layer in layers if dtype for p in layer.parameters() if not p.requires_grad}:
        held.append((parameter, parameter.data.cpu()))
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, values in held:
            parameter.data = values.to(parameter.device)
