"""A trainable model with its optimizer and learning rate; every optimizer step is made here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import ConditionBatch, chunk_rows
from distill.config import OptimConfig
from distill.errors import NonFiniteError, UserError
from distill.models.launching import Launch, eager
from distill.models.parameters import meta_copy, trainable_parameters
from distill.models.sharding import check_resharding, full_tensor, name_blocks, shard_like
from distill.training.optimizers import OPTIMIZERS

LossOf = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]
"""Rows of a batch -> the mean of a loss over them, and what else is wanted of them, row by row."""
Update = Callable[..., tuple[dict[str, Tensor], list[Tensor]]]
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
        (routing if "routing" in name.split(".") else others).append(parameter)
    groups = [{"params": others, "lr_factor": 1.0}, {"params": routing, "lr_factor": routing_lr_factor}]
    return [group for group in groups if group["params"]]


class Learner:
    """A model with an optimizer. The learning rate depends only on the number of the update, so no state is saved.

    meta_model: the model without values, used to make copies without sharding, since a sharded model cannot be copied.
    predict: the model's call without gradient, for batches of few shapes. rate_factor: of the learning rate, from now.
    """

    def __init__(
        self,
        role: str,
        model: nn.Module,
        optim: OptimConfig,
        num_steps: int,
        accelerator: Accelerator,
        launch: Launch = eager,
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
        name_blocks(model)
        check_resharding(model, accelerator)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self._launch = launch
        self._failed = torch.zeros(2, device=accelerator.device)
        self._number = torch.zeros((), device=accelerator.device)
        self._rates = [torch.zeros((), device=accelerator.device) for _ in groups]
        self.predict = launch(self.module)
        self.rate_factor = 1.0

    @property
    def module(self) -> nn.Module:
        """The model without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)

    def on(self, loss_of: LossOf, accumulation: int = 1) -> Update:
        """Optimizer steps on the mean of a loss, as a function: (number of the update, *batch) -> values, rows.

        The batch, tensors and conditions with a row per sample, is cut into `accumulation` micro-batches for `loss_of`.
        The host waits for nothing. Where the loss or the gradient is not finite, neither this step nor a later one
        changes a parameter, which is decided on the device, and `check` raises.

        values: the loss, and the gradient norm before clipping. rows: what `loss_of` gave of the whole batch.
        Raises: NonFiniteError, at once, where the host has to decide (not `_is_on_device`).
        """

        def work(*batch: ConditionBatch) -> tuple[Tensor, Tensor, list[Tensor]]:
            micro_batches = list(zip(*(chunk_rows(part, accumulation) for part in batch), strict=True))
            return self._step(loss_of, micro_batches)

        launched = (self._launch if self._is_on_device else eager)(work)

        def update(step: int, *batch: ConditionBatch) -> tuple[dict[str, Tensor], list[Tensor]]:
            self._begin(step)
            loss, norm, rows = launched(*batch)
            return {"loss": loss, "grad_norm": norm}, rows

        return update

    def _begin(self, step: int) -> None:
        """Say where the optimizer's work reads it which update this is, and its learning rate."""
        self._number.fill_(step + 1)
        rate = self.rate_factor * self.optim.lr * lr_factor(step, self.num_steps, self.optim)
        for group, place in zip(self.optimizer.param_groups, self._rates, strict=True):
            place.fill_(rate * group["lr_factor"])
            group["lr"] = place if self._is_on_device else rate * group["lr_factor"]
            group["capturable"] = place.is_cuda  # a checkpoint may say otherwise
        self.model.train()

    def _step(
        self, loss_of: LossOf, micro_batches: list[tuple[ConditionBatch, ...]]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        self.optimizer.zero_grad(set_to_none=True)
        total, rows = torch.zeros((), device=self.accelerator.device), []
        for i, batch in enumerate(micro_batches):
            with self._sync(is_last=i == len(micro_batches) - 1):
                loss, of_batch = loss_of(*batch)
                rows.append(of_batch)
                loss = loss / len(micro_batches)
                total += loss.detach()
                self.accelerator.backward(loss)
        # accelerate would compare sharded parameters with other models', value by value, to learn whose they are.
        clip = torch.nn.utils.clip_grad_norm_ if self.accelerator.is_fsdp2 else self.accelerator.clip_grad_norm_
        norm = clip(trainable_parameters(self.model).values(), self.optim.clip_norm)
        assert norm is not None
        norm = full_tensor(norm)
        # The mean over processes: if one process must stop, all of them stop.
        loss = self.accelerator.reduce(total, reduction="mean")
        assert isinstance(loss, Tensor)
        self._note(loss, norm)
        if self._is_on_device:
            # What the fused kernel is told by a loss scaler, too: nothing is changed where this is not zero.
            self.optimizer.optimizer.found_inf = self._failed.any().float()
            self.optimizer.optimizer.grad_scale = None
        elif bool(self._failed.any()):
            self.optimizer.zero_grad(set_to_none=True)
            self.check()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, [torch.cat(parts) for parts in zip(*rows, strict=True)]

    @torch.no_grad()
    def restart(self, values: Mapping[str, Tensor]) -> None:
        """Begin anew from other trainable weights, by name and without sharding; moments are forgotten.

        In place, where a CUDA graph may hold them; an optimizer in 8 bits keeps tables beside them, and makes all anew.
        """
        for name, parameter in trainable_parameters(self.module).items():
            parameter.copy_(shard_like(values[name].to(self.accelerator.device), parameter))
        if self.optim.name != "adamw":
            self.optimizer.state.clear()
        for state in self.optimizer.state.values():
            for moment in state.values():
                moment.zero_()

    def check(self) -> None:
        """Raise NonFiniteError if the loss or gradient of an update was not finite. The host waits for the device."""
        loss, gradient = (int(number) for number in self._failed.tolist())
        if loss or gradient:
            what = "loss" if loss else "gradient"
            raise NonFiniteError(f"{self.role}: the {what} is not finite in its update {loss or gradient}")

    def _note(self, loss: Tensor, norm: Tensor) -> None:
        """Keep the number of the first update whose loss, or whose gradient, is not finite."""
        gradient = ~norm.isfinite()
        if self.accelerator.scaler is not None and self._may_overflow():
            gradient = torch.zeros_like(gradient)
        now = torch.stack([~loss.isfinite(), gradient.to(loss.device)]) * self._number
        self._failed.copy_(torch.where(self._failed.any(), self._failed, now))

    @property
    def _is_on_device(self) -> bool:
        """Whether the optimizer's kernel reads rate and verdict on the device: the fused one, of whole parameters.

        A loss scaler gives the verdict itself, after a look of its own.
        """
        return self.optim.name == "adamw" and self.accelerator.scaler is None and not self.accelerator.is_fsdp2

    def _may_overflow(self) -> bool:
        """Whether an overflow is normal: the fp16 scaler then skips the step and halves the scale, down to a limit."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def _sync(self, *, is_last: bool) -> AbstractContextManager:
        return nullcontext() if is_last else self.accelerator.no_sync(self.model)
