"""Copies of models that share the tensors which none of them changes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that do not require a gradient, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def copy_sharing(model: M, shared: Iterable[nn.Parameter]) -> M:
    """A deep copy that shares all buffers and the parameters in `shared` with the model.

    Parameters stay shared when either model moves to another device or dtype, because modules move them in place;
    buffers do where `move_together` moves both.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*shared, *model.buffers()]})


def move_together(models: Iterable[nn.Module], device: torch.device) -> None:
    """Move models to a device, in place. What they share they share there, buffers too."""
    moved: dict[int, tuple[Tensor, Tensor]] = {}  # by what they were, which lives until all have moved
    for model in models:
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = moved.setdefault(id(buffer), (buffer, buffer.to(device)))[1]
        model.to(device)


def meta_copy(model: M) -> M:
    """A deep copy with its parameters on the meta device, without values, for `materialize`. Buffers are shared."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, {**empty, **{id(buffer): buffer for buffer in model.buffers()}}).eval()


def materialize(meta_model: M, values: Mapping[str, Tensor]) -> M:
    """A copy of `meta_model` whose parameters are the tensors in `values`, by name, not copies of them."""
    model = copy.deepcopy(meta_model, {id(buffer): buffer for buffer in meta_model.buffers()})
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), leaf, parameter)
    return model.to(next(iter(values.values())).device)  # moves the buffers
