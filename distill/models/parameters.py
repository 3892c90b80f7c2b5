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
    """A deep copy that shares the parameters in `shared` with the model.

    They stay shared when either model moves to another device or dtype, because modules move in place.
    """
    return copy.deepcopy(model, {id(parameter): parameter for parameter in shared})


def meta_copy(model: M) -> M:
    """A deep copy with its parameters on the meta device: shapes without values, for `materialize`."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, empty).eval()


def materialize(meta_model: M, values: Mapping[str, Tensor]) -> M:
    """A copy of `meta_model` whose parameters are the tensors in `values`, by name, not copies of them."""
    model = copy.deepcopy(meta_model)
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)
        setattr(model.get_submodule(owner), leaf, parameter)
    return model.to(next(iter(values.values())).device)  # moves the buffers
