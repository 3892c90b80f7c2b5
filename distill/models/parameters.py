"""Models that hold one and the same tensor where none of them changes it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that do not, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def sharing_copy(model: M, shared: Iterable[nn.Parameter]) -> M:
    """A deep copy, except that the parameters `shared` are the model's own objects.

    They stay shared when either model moves to another device or precision: modules move in place.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in shared})


def blank_copy(model: M) -> M:
    """A deep copy whose parameters have shapes and no values (device meta), to be `filled`."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty).eval()


def filled(blank: M, values: Mapping[str, Tensor]) -> M:
    """A copy of `blank` whose parameters are `values`, by name: these very tensors."""
    model = copy.deepcopy(blank)
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), leaf, parameter)
    return model.to(next(iter(values.values())).device)  # its buffers
