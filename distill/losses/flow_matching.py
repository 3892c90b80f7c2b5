"""Regression of the velocity."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def flow_matching_loss(velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """mean |velocity - (eps - x0)|^2 in float32, arXiv:2210.02747.

    Args:
        velocity: prediction at x_t = interpolate(x0, eps, t), shape (B, C, H, W).
        x0, eps: the data and the noise it was mixed with; constants.
    """
    return F.mse_loss(velocity.float(), (eps - x0).detach().float())
