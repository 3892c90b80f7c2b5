"""Optimizers by their name in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from distill.config import OptimConfig
from distill.errors import UserError

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, optim: OptimConfig, device: torch.device) -> Optimizer:
    return AdamW(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True)


def _adamw_8bit(groups: Groups, optim: OptimConfig, device: torch.device) -> Optimizer:
    """AdamW with block-wise 8-bit moments, arXiv:2110.02861; the moments of small tensors stay in float32."""
    if device.type != "cuda":
        raise UserError(f"optim.name = adamw_8bit needs a CUDA device, and this is {device.type}; adamw runs on any")
    try:
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("optim.name = adamw_8bit needs bitsandbytes: pip install 'dar-distill[eight_bit]'") from error
    return AdamW8bit(groups, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig, torch.device], Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
}
