"""What a plan is about: a model's parameters, memory and operations, of a SiT by formulas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dar import SiT, SiTConfig, num_parameters
from distill.conditions import ClassLabels
from distill.models import Backbone
from distill.planning import activations
from distill.planning.activations import FLOAT, Setting, mlp_width
from distill.planning.work import Work, flops_of


class Subject(ABC):
    """A model that need not exist yet. Memory in bytes, of R rows."""

    @property
    def bytes_as_loaded(self) -> int:
        """Of a parameter."""
        return FLOAT

    @property
    def merges_adapters(self) -> bool:
        """Whether a student with adapters is drawn from as another model."""
        return True

    @property
    @abstractmethod
    def summary(self) -> str:
        """Its shape, for people."""

    @property
    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Its shape, as JSON has it."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W), of video (C, F, H, W)."""

    @property
    @abstractmethod
    def num_parameters(self) -> int: ...

    @property
    @abstractmethod
    def num_distinct(self) -> int:
        """Conditions."""

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """Columns of a grid."""

    @property
    @abstractmethod
    def parameters_at_once(self) -> int:
        """What FSDP gathers of it at once: two blocks, and all that is outside of blocks."""

    @abstractmethod
    def build(self) -> Backbone:
        """The model, on the meta device."""

    @abstractmethod
    def saved(self, rows: int, setting: Setting) -> dict[str, int]:
        """What autograd keeps between forward and backward, by kind, without parameters."""

    @abstractmethod
    def backward(self, rows: int, setting: Setting) -> int:
        """Temporary tensors of the backward pass."""

    @abstractmethod
    def forward(self, rows: int, product_bytes: int) -> int:
        """Temporary tensors of a pass without gradient."""

    @abstractmethod
    def copies(self, setting: Setting) -> int:
        """Weights in low precision that autocast holds until it ends."""

    @abstractmethod
    def work(self, setting: Setting) -> Work:
        """Operations of one row."""


@dataclass(frozen=True)
class SitSubject(Subject):
    """A `dar.SiT`."""

    shape: SiTConfig

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.shape.in_channels, self.shape.input_size, self.shape.input_size

    @property
    def summary(self) -> str:
        shape = self.shape
        return (
            f"{shape.depth} blocks x {shape.hidden_size}, patch {shape.patch_size}, {shape.in_channels} x "
            f"{shape.input_size} x {shape.input_size}, routing {shape.routing.kind}"
        )

    @property
    def values(self) -> dict[str, Any]:
        return asdict(self.shape)

    @property
    def num_parameters(self) -> int:
        return num_parameters(self.shape)

    @property
    def num_distinct(self) -> int:
        return self.shape.num_classes

    @property
    def num_examples(self) -> int:
        return len(ClassLabels(self.shape.num_classes).examples())

    @property
    def parameters_at_once(self) -> int:
        d = self.shape.hidden_size
        block = 10 * d * d + 2 * d * mlp_width(self.shape)
        return 2 * block + self.num_parameters - self.shape.depth * block

    def build(self) -> Backbone:
        with torch.device("meta"):
            return SiT(self.shape)

    def saved(self, rows: int, setting: Setting) -> dict[str, int]:
        return activations.saved_activations(self.shape, rows, setting)

    def backward(self, rows: int, setting: Setting) -> int:
        return activations.backward_temporaries(self.shape, rows, setting)

    def forward(self, rows: int, product_bytes: int) -> int:
        return activations.forward_temporaries(self.shape, rows, product_bytes)

    def copies(self, setting: Setting) -> int:
        return activations.cached_copies(self.shape, setting)

    def work(self, setting: Setting) -> Work:
        return flops_of(self.shape, setting)


def subject_of(model: SiTConfig | Subject) -> Subject:
    return SitSubject(model) if isinstance(model, SiTConfig) else model
