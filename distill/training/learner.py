"""One role that learns: its model, optimizer and rate, and the only update there is."""

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

MIN_LOSS_SCALE = 1e-4  # fairseq's limit: gradients that overflow below it are not too large, but broken


def lr_factor(step: int, num_steps: int, optim: OptimConfig) -> float:
    """Warm-up, plateau, linear decay: the rate of update `step` (from 0) of `num_steps` as a share of lr."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    decay_steps = optim.decay_fraction * num_steps
    left = min(1.0, (num_steps - step) / decay_steps) if decay_steps else 1.0
    return min(warm, left)


def parameter_groups(model: nn.Module, routing_lr_factor: float) -> list[dict[str, Any]]:
    """What learns: the routing's parameters, which have a rate of their own, and all others."""
    routing, others = [], []
    for name, parameter in trainable_parameters(model).items():
        (routing if name.startswith("routing.") else others).append(parameter)
    groups = [{"params": others, "lr_factor": 1.0}, {"params": routing, "lr_factor": routing_lr_factor}]
    return [group for group in groups if group["params"]]


class Learner:
    """A role with an optimizer. The rate is a function of the update's number, so nothing is to be resumed.

    meta_model: the model without values, to make plain copies of: one that is sharded cannot be copied.
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
        """The bare model, without what accelerate wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    def update(self, step: int, losses: Sequence[Callable[[], Tensor]]) -> dict[str, float]:
        """One optimizer step on the mean of `losses`, one closure per micro-batch.

        Returns: loss and gradient norm before clipping.
        Raises: NonFiniteError before anything is changed.
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
                # The mean over processes, so that all of them stop where one of them must.
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
        """With fp16 it is expected now and then: the scaler skips the step and halves the scale, while that helps."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def _sync(self, *, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)
