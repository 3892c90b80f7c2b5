"""Exponential moving average of a model's parameters."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def ema_of(model: nn.Module, decay: float) -> AveragedModel:
    """A copy that `update_parameters(model)` moves by (1 - decay); the first update copies."""
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    return ema.requires_grad_(False).eval()
