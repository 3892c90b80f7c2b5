"""A trainable model with its optimizer and learning rate; every optimizer step is made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.config import OptimConfig
from distill.errors import NonFiniteError, UserError
from distill.models.parameters import meta_copy, trainable_parameters
from distill.models.sharding import full_tensor
from distill.training.optimizers import OPTIMIZERS

MIN_LOSS_SCALE = 1e-4  # fairseq's limit: gradients that overflow below this scale are broken, not just large


def lr_factor(step: int, num_steps: int, optim: OptimConfig) -> float:
    """Learning rate of update `step` (from 0) of `num_steps`, relative to lr: warm-up, plateau, linear decay."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    decay_steps = optim.decay_fraction * num_steps
    left = min(1.0, (num_steps - step) / decay_steps) if decay_steps else 1.0
    return min(warm, left)


def parameter_groups(model: nn.Module, routing_lr_factor: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: the routing, which has its own learning rate, and all others."""
    routing, others = [], []
    for name, parameter in trainable_parameters(model).items():
        (routing if name.startswith("routing.") else others).append(parameter)
    groups = [{"params": others, "lr_factor": 1.0}, {"params": routing, "lr_factor": routing_lr_factor}]
    return [group for group in groups if group["params"]]


class Learner:
    """A model with an optimizer. The learning rate depends only on the number of the update, so no state is saved.

    meta_model: the model without values, used to make copies without sharding, since a sharded model cannot be copied.
    """

    def __init__(
        self, role: str, model: nn.Module, optim: OptimConfig, num_steps: int, accelerator: Accelerator
    ) -> None:
        self.role = role
        self.optim = optim
        self.num_steps = num_steps
        self.accelerator = accelerator
        if accelerator.is_fsdp2 and optim.name != "adamw":
            raise UserError(f"FSDP: optim.name must be adamw; got {optim.name!r}")
        self.meta_model = meta_copy(model)
        groups = parameter_groups(model, optim.routing_lr_factor)
        optimizer = OPTIMIZERS[optim.name](groups, optim, accelerator.device)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def module(self) -> nn.Module:
        """The model without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)

    def update(self, step: int, losses: Sequence[Callable[[], Tensor]]) -> dict[str, float]:
        """Make one optimizer step on the mean of `losses`, one closure per micro-batch.

        Returns: the loss, and the gradient norm before clipping.
        Raises: NonFiniteError before any parameter is changed.
        """
        rate = self.optim.lr * lr_factor(step, self.num_steps, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for i, closure in enumerate(losses):
            with self._sync(is_last=i == len(losses) - 1):
                loss = closure() / len(losses)
                # The mean over processes: if one process must stop, all of them stop.
                reduced = self.accelerator.reduce(loss.detach(), reduction="mean")
                assert isinstance(reduced, Tensor)
                value = float(reduced)
                if not math.isfinite(value):
                    raise NonFiniteError(f"{self.role}: the loss is not finite in its update {step + 1}")
                self.accelerator.backward(loss)
            total += value
        norm = self.accelerator.clip_grad_norm_(trainable_parameters(self.model).values(), self.optim.clip_norm)
        assert norm is not None
        norm = full_tensor(norm)
        if not torch.isfinite(norm) and not self._may_overflow():
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"{self.role}: the gradient is not finite in its update {step + 1}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": total, "grad_norm": float(norm)}

    def _may_overflow(self) -> bool:
        """Whether an overflow is normal: the fp16 scaler then skips the step and halves the scale, down to a limit."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def _sync(self, *, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)
