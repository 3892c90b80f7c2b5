"""The student's sampler, for sampling and for training inputs ("backward simulation", DMD2 section 4.5).

A few-step student predicts x0. The sampler mixes it with FRESH noise at the next t of its list:

    x_{t_1} = eps_1,   x0_s = student.x0(x_{t_s}, t_s, y),   x_{t_{s+1}} = interpolate(x0_s, eps_{s+1}, t_{s+1})
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.sampling.flow import interpolate
from distill.sampling.guidance import Denoiser


@torch.no_grad()
def rollout(student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor, num_done: int) -> Tensor:
    """The student's input x_t at t_list[num_done] after `num_done` steps of its own sampler.

    Args:
        noise: (S, B, *sample_shape), one independent draw per step of the list.
        t_list: descending (S); t_list[0] is the t of the first step.
        num_done: 0 gives interpolate(0, noise[0], t_list[0]), which is exactly the noise if t_list[0] = 1.
    """
    t_list = t_list.to(noise)
    x_t = t_list[0] * noise[0]
    for step in range(num_done):
        t = t_list[step].expand(len(x_t))
        x0 = student.x0(x_t, t, y)
        x_t = interpolate(x0, noise[step + 1], t_list[step + 1])
    return x_t


@torch.no_grad()
def few_step_sample(student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor) -> Tensor:
    """Samples x0 (B, *sample_shape) of the student; for the arguments see `rollout`."""
    last = len(t_list) - 1
    x_t = rollout(student, noise, y, t_list, last)
    return student.x0(x_t, t_list[last].to(noise).expand(len(x_t)), y)
