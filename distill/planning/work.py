"""Floating-point operations of a SiT's matrix products, and the time that a device needs for them.

A product of (m, k) and (k, n) counts 2 m k n, as in torch's FlopCounterMode. Element-wise operations are not counted:
they cost memory traffic, which the utilisation of the device accounts for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dar import SiTConfig
from distill.planning.activations import (
    FREQUENCIES,
    Setting,
    mlp_width,
    num_idle,
    num_pairs,
    num_readers,
    num_tokens,
)

UTILISATION = 0.3  # assumed share of the peak that a transformer of this size reaches; not measured


@dataclass(frozen=True)
class Device:
    """Dense peaks from the manufacturer's data sheet, in 10^12 operations per second; memory in GiB."""

    name: str
    memory_gib: float
    tflops_low_precision: float
    tflops_float32: float

    def tflops(self, mixed_precision: str) -> float:
        """The rate that the plan assumes."""
        peak = self.tflops_float32 if mixed_precision == "no" else self.tflops_low_precision
        return UTILISATION * peak


DEVICES = (
    Device("H100 SXM 80 GB", 80, 989, 67),
    Device("A100 SXM 80 GB", 80, 312, 19.5),
    Device("RTX 4090 24 GB", 24, 165, 82.6),
)


class Work(Protocol):
    """Operations of one row: of a forward pass, and of forward with backward."""

    @property
    def forward(self) -> float: ...

    def update(self, setting: Setting) -> float: ...


@dataclass(frozen=True)
class Flops:
    """Operations of one row's forward pass, grouped by their cost in the backward pass.

    sublayers: products of tokens with the sublayers' weights; attention: products of tokens with each other;
    routing: products of the routing; adapters: products of LoRA, not merged; rest: embeddings, modulations, the head.
    idle_sublayers, idle_attention: the part of the two without a backward pass (`activations.num_idle`).
    """

    sublayers: float
    attention: float
    routing: float
    adapters: float
    rest: float
    idle_sublayers: float
    idle_attention: float

    @property
    def forward(self) -> float:
        return self.sublayers + self.attention + self.routing + self.adapters + self.rest

    def update(self, setting: Setting) -> float:
        """Forward and backward: the gradient of a product takes two products, or one if the weight is frozen."""
        frozen = setting.trainable != "all"
        sublayers, attention = self.sublayers - self.idle_sublayers, self.attention - self.idle_attention
        backward = 2 * (attention + self.routing + self.adapters) + (1 if frozen else 2) * sublayers
        backward += 0 if frozen else 2 * self.rest
        again = sublayers + attention + self.adapters if setting.checkpointing else 0
        return self.forward + backward + again


def flops_of(model: SiTConfig, setting: Setting) -> Flops:
    """Operations for one row of a model trained with `setting`."""
    tokens, d, wide = num_tokens(model), model.hidden_size, mlp_width(model)
    rank = setting.lora_rank if setting.trainable == "lora" else 0
    cells = model.in_channels * model.patch_size**2
    idle = num_idle(model, setting)
    rest = 2 * tokens * d * cells + (FREQUENCIES * d + d * d) + model.depth * 6 * d * d + 2 * d * d
    return Flops(
        sublayers=2 * model.depth * tokens * (4 * d * d + 2 * d * wide),
        attention=2 * model.depth * 2 * tokens * tokens * d,
        routing=2 * tokens * _routing_products(model),
        adapters=2 * model.depth * tokens * rank * (6 * d + 2 * (d + wide)),
        rest=2 * rest,
        idle_sublayers=2 * idle * tokens * 4 * d * d,
        idle_attention=2 * idle * 2 * tokens * tokens * d,
    )


def _routing_products(model: SiTConfig) -> float:
    """Multiplications of the routing's products, per token."""
    routing, d = model.routing, model.hidden_size
    if routing.kind == "unet_skip":
        return model.depth // 2 * 2 * d * d
    if routing.kind == "hyper":
        n = routing.streams
        coefficients = n * d * (n + 2) if routing.mixing == "free" else n * d * (2 * n + n * n)
        return 2 * model.depth * (coefficients + n * d + n * n * d)
    if routing.kind == "dar" and routing.query == "dynamic":
        return num_readers(model) * d * d
    if routing.kind in ("dar", "attnres"):
        return num_pairs(model) * d
    return 0
