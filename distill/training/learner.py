"""A trainable model with its optimizer and learning rate; every optimizer step is made here."""

from __future__ import annotations

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
        self._failed = torch.zeros(2, device=accelerator.device)

    @property
    def module(self) -> nn.Module:
        """The model without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)

    def update(self, step: int, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
        """Make one optimizer step on the mean of `losses`, one closure per micro-batch. The host does not wait for it.

        Where the loss or the gradient is not finite, neither this step nor a later one changes a parameter, which is
        decided on the device, and `check` raises.

        Returns: the loss, and the gradient norm before clipping, on the device.
        Raises: NonFiniteError, at once, where the host has to decide (not `_decides_on_device`).
        """
        rate = self.optim.lr * lr_factor(step, self.num_steps, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.accelerator.device)
        for i, closure in enumerate(losses):
            with self._sync(is_last=i == len(losses) - 1):
                loss = closure() / len(losses)
                total += loss.detach()
                self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(trainable_parameters(self.model).values(), self.optim.clip_norm)
        assert norm is not None
        norm = full_tensor(norm)
        # The mean over processes: if one process must stop, all of them stop.
        loss = self.accelerator.reduce(total, reduction="mean")
        assert isinstance(loss, Tensor)
        self._note(step, loss, norm)
        if self._decides_on_device:
            # What the fused kernel is told by a loss scaler, too: nothing is changed where this is not zero.
            self.optimizer.optimizer.found_inf = self._failed.any().float()
            self.optimizer.optimizer.grad_scale = None
        elif bool(self._failed.any()):
            self.optimizer.zero_grad(set_to_none=True)
            self.check()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm}

    def check(self) -> None:
        """Raise NonFiniteError if the loss or gradient of an update was not finite. The host waits for the device."""
        loss, gradient = (int(number) for number in self._failed.tolist())
        if loss or gradient:
            what = "loss" if loss else "gradient"
            raise NonFiniteError(f"{self.role}: the {what} is not finite in its update {loss or gradient}")

    def _note(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Keep the number of the first update whose loss, or whose gradient, is not finite."""
        gradient = ~norm.isfinite()
        if self.accelerator.scaler is not None and self._may_overflow():
            gradient = torch.zeros_like(gradient)
        now = torch.stack([~loss.isfinite(), gradient.to(loss.device)]) * float(step + 1)
        self._failed = torch.where(self._failed.any(), self._failed, now)

    @property
    def _decides_on_device(self) -> bool:
        """Whether the optimizer's kernel can be told to leave everything as it is: the fused one, of whole parameters.

        A loss scaler tells it itself, after a look of its own.
        """
        return self.optim.name == "adamw" and self.accelerator.scaler is None and not self.accelerator.is_fsdp2

    def _may_overflow(self) -> bool:
        """Whether an overflow is normal: the fp16 scaler then skips the step and halves the scale, down to a limit."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def _sync(self, *, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)
