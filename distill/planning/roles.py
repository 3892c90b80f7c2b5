"""The models of a training as they will be, on the device `meta`: parameters that are counted and take no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from dar import SiT, SiTConfig
from distill.config import OptimConfig, RunConfig, TrainConfig
from distill.models.ema import Ema
from distill.models.parameters import trainable_parameters
from distill.objectives.task import models_from
from distill.training.start import TRAINABLE

EMA = "EMA"
SMALL_8BIT = 4096  # bitsandbytes keeps the moments of smaller tensors in float32
BLOCK_8BIT = 256  # moments that share one float32 scale
TABLES_8BIT = 2 * 256 * 4  # the 256 values that an 8-bit moment can have, of either moment


@dataclass(frozen=True)
class Role:
    """Bytes that one model has for itself; what it shares is the first one's.

    parameters: numbers of its own. learning: those with a gradient.
    """

    name: str
    parameters: int
    learning: int
    weights: int
    optimizer: int
    gradients: int


def run_roles(config: RunConfig, shape: SiTConfig) -> list[Role]:
    """teacher, student, what the objective trains beside it, and the student's EMA."""
    with torch.device("meta"):
        teacher = SiT(shape)
        models = models_from(teacher, config)
        student = cast(nn.Module, models.student)
        average = Ema(student, config.student.ema_decay).module
    return _counted(
        ("teacher", teacher, None),
        ("student", student, config.student.optim),
        *((role, network.model, network.optim) for role, network in models.networks.items()),
        (EMA, average, None),
    )


def train_roles(config: TrainConfig, shape: SiTConfig) -> list[Role]:
    """The teacher that learns, and its EMA."""
    with torch.device("meta"):
        model = SiT(shape)
        if config.start.path is not None:
            TRAINABLE[config.start.trainable](model, config.start)
        average = Ema(model, config.flow_matching.ema_decay).module
    return _counted(("teacher", model, config.optim), (EMA, average, None))


def _counted(*models: tuple[str, nn.Module, OptimConfig | None]) -> list[Role]:
    roles, seen = [], set()
    for name, model, optim in models:
        own = [tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in seen]
        seen |= {id(tensor) for tensor in own}
        learns = list(trainable_parameters(model).values()) if optim else []
        roles.append(
            Role(
                name,
                parameters=sum(tensor.numel() for tensor in own),
                learning=sum(parameter.numel() for parameter in learns),
                weights=sum(tensor.nbytes for tensor in own),
                optimizer=optimizer_bytes([p.numel() for p in learns], optim.name) if optim else 0,
                gradients=sum(parameter.nbytes for parameter in learns),
            )
        )
    return roles


def optimizer_bytes(sizes: list[int], name: str) -> int:
    """Of an optimizer for tensors of the given numbers of elements: two moments each.

    adamw counts its steps on the device, in 4 bytes a tensor. adamw_8bit has a byte per moment and a float32 scale per
    block of them (bitsandbytes' block-wise form, arXiv:2110.02861); small tensors keep float32.
    """
    if name == "adamw":
        return sum(2 * 4 * size + 4 for size in sizes)
    large = [size for size in sizes if size >= SMALL_8BIT]
    scales = sum(4 * math.ceil(size / BLOCK_8BIT) for size in large)
    return 2 * (sum(large) + scales) + 8 * (sum(sizes) - sum(large)) + (TABLES_8BIT if large else 0)
