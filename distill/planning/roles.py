"""The models of a training on the meta device: their parameters can be counted but take no memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from distill.config import OptimConfig, TrainConfig
from distill.models.ema import Ema
from distill.models.parameters import copy_sharing, frozen_parameters, trainable_parameters
from distill.objectives import RunConfig
from distill.objectives.alignment import Aligned
from distill.objectives.mixture import copies_of
from distill.objectives.task import models_from
from distill.planning.encoders import STORED_WIDTH, encoder_of
from distill.planning.subjects import Subject
from distill.training.start import TRAINABLE

EMA = "EMA"
SMALL_8BIT = 4096  # bitsandbytes keeps the moments of smaller tensors in float32
BLOCK_8BIT = 256  # moments per float32 scale
TABLES_8BIT = 2 * 256 * 4  # the 256 possible values of an 8-bit moment, for each of the two moments


@dataclass(frozen=True)
class Role:
    """Bytes of one model, without what it shares with earlier roles.

    parameters: number of parameters and buffers that no earlier role has. trainable: number of trainable parameters.
    """

    name: str
    parameters: int
    trainable: int
    weights: int
    optimizer: int
    gradients: int


def run_roles(config: RunConfig, subject: Subject) -> list[Role]:
    """teacher, student, the networks that the objective trains, and the student's EMA."""
    with torch.device("meta"):
        teacher = subject.build()
        if config.roles.trainable == "all":
            cast(nn.Module, teacher).float()  # as `build_models` has it
        models = models_from(teacher, replace(config, student=replace(config.student, start=None)))
        student = cast(nn.Module, models.student)
        averages = [Ema(student, decay).module for decay in (0.0, *config.student.more_ema_decays)]
    return _counted(
        ("teacher", cast(nn.Module, teacher), None),
        ("student", student, config.student.optim),
        *((role, network.model, network.optim) for role, network in models.networks.items()),
        *((name, copy_of(student), None) for name in copies_of(config)),
        *((EMA, average, None) for average in averages),
    )


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that has its own of what learns."""
    return copy_sharing(model, frozen_parameters(model).values())


def train_roles(config: TrainConfig, subject: Subject) -> list[Role]:
    """The trainable teacher, with its projector, its EMA, and the encoder that it is aligned with."""
    encoder = encoder_of(config.repa, subject.sample_shape) if config.repa else None
    with torch.device("meta"):
        model: Any = subject.build()
        if config.start.path is not None:
            TRAINABLE[config.start.trainable](model, config.start)
        if config.repa is not None:
            own_width: int = model.t_embedding_size  # of SRA, which has no encoder
            width = {"stored": STORED_WIDTH, "self": own_width}
            model = Aligned(model, config.repa, encoder.width if encoder else width[config.repa.encoder])
        average = Ema(model, config.flow_matching.ema_decay).module
    frozen = [("encoder", encoder.model, None)] if encoder else []
    return _counted(("teacher", model, config.optim), *frozen, (EMA, average, None))


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
                trainable=sum(parameter.numel() for parameter in learns),
                weights=sum(tensor.nbytes for tensor in own),
                optimizer=optimizer_bytes([p.numel() for p in learns], optim.name) if optim else 0,
                gradients=sum(parameter.nbytes for parameter in learns),
            )
        )
    return roles


def optimizer_bytes(sizes: list[int], name: str) -> int:
    """Bytes of an optimizer for tensors with `sizes` elements; it has two moments per element.

    adamw keeps a step count of 4 bytes per tensor on the device. adamw_8bit has one byte per moment and a float32 scale
    per block of moments (bitsandbytes' block-wise form, arXiv:2110.02861); moments of small tensors stay in float32.
    """
    if name == "adamw":
        return sum(2 * 4 * size + 4 for size in sizes)
    large = [size for size in sizes if size >= SMALL_8BIT]
    scales = sum(4 * math.ceil(size / BLOCK_8BIT) for size in large)
    return 2 * (sum(large) + scales) + 8 * (sum(sizes) - sum(large)) + (TABLES_8BIT if large else 0)
