"""The linear path, in one convention: t = 0 is data, t = 1 is noise.

    x_t = (1 - t) x0 + t eps,   velocity = eps - x0,   x0 = x_t - t velocity

t is a tensor of shape (B) or a scalar tensor; images are (B, C, H, W).
"""

from __future__ import annotations

from torch import Tensor


def t_like(t: Tensor, x: Tensor) -> Tensor:
    """View t, (B) or scalar, so that it broadcasts against x, (B, ...)."""
    return t.view(-1, *[1] * (x.dim() - 1)) if t.dim() else t


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = t_like(t, x0)
    return (1 - t) * x0 + t * eps


def velocity_to_x0(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t - t velocity."""
    return x_t - t_like(t, x_t) * velocity


def combine_cfg(cond: Tensor, uncond: Tensor, cfg_scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, arXiv:2207.12598: uncond + cfg_scale (cond - uncond); 1.0 means no guidance."""
    return uncond + cfg_scale * (cond - uncond)
