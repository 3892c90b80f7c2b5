"""Loss terms: free functions of tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.sampling.flow import t_like

NORM_FLOOR = 1e-6
MAX_GRADIENT = 10.0  # of a sample, in mean over its values


def flow_matching_loss(velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """mean |velocity - (eps - x0)|^2 in float32, arXiv:2210.02747.

    Args:
        velocity: prediction at x_t = interpolate(x0, eps, t), shape (B, C, H, W).
        x0, eps: the data and the noise it was mixed with; constants.
    """
    return F.mse_loss(velocity.float(), (eps - x0).detach().float())


def flow_matching_errors(velocity: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """The part of each sample, (B), whose mean is `flow_matching_loss`; constant."""
    return (velocity.detach().float() - (eps - x0).detach().float()).square().flatten(1).mean(1)


def dmd_gradient(x0_gen: Tensor, x0_teacher: Tensor, x0_fake: Tensor) -> Tensor:
    """g = (x0_fake - x0_teacher) / (mean_CHW |x0_gen - x0_teacher| + 1e-6), per sample, in float32.

    DMD2, arXiv:2405.14867, with DMD's normaliser (arXiv:2311.18828 eq. 8), which vanishes where the teacher leaves a
    sample as it is: mean_CHW |g| is at most 10, so that no such sample is the whole update. The difference of two close
    estimates would be lost in bf16, hence float32 or better throughout.
    """
    x0_gen, x0_teacher, x0_fake = (_float32(x).detach() for x in (x0_gen, x0_teacher, x0_fake))
    difference = x0_fake - x0_teacher
    distance = _mean(x0_gen - x0_teacher) + NORM_FLOOR
    return difference / torch.maximum(distance, _mean(difference) / MAX_GRADIENT)


def dmd_loss(x0_gen: Tensor, x0_teacher: Tensor, x0_fake: Tensor, weights: Tensor | None = None) -> Tensor:
    """Surrogate loss whose gradient is the distribution-matching gradient.

    loss = 0.5 mean w |x0_gen - stop(x0_gen - g)|^2, so d loss / d x0_gen = w g / numel.

    Args:
        x0_gen: student sample, (B, C, H, W), requires grad.
        x0_teacher: guided teacher estimate from a noised x0_gen, same shape; constant.
        x0_fake: the critic's estimate from the same noised x0_gen, unguided; constant.
        weights: w of each sample, (B); 1 by default.

    Returns: scalar; only its gradient has a meaning.
    Raises: ValueError where shapes differ. Non-finite values are not masked.
    """
    if not x0_gen.shape == x0_teacher.shape == x0_fake.shape:
        raise ValueError(
            f"dmd_loss needs equal shapes; got x0_gen {tuple(x0_gen.shape)}, "
            f"x0_teacher {tuple(x0_teacher.shape)}, x0_fake {tuple(x0_fake.shape)}"
        )
    x0_gen = _float32(x0_gen)
    target = x0_gen.detach() - dmd_gradient(x0_gen, x0_teacher, x0_fake)
    squares = (x0_gen - target).square()
    return 0.5 * (squares if weights is None else t_like(weights, squares) * squares).mean()


def _mean(x: Tensor) -> Tensor:
    """mean |x| of each sample, (B, 1, ..)."""
    return x.abs().mean(dim=tuple(range(1, x.dim())), keepdim=True)


def _float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
