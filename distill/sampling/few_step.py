"""The student's sampler, for sampling and for training inputs ("backward simulation", DMD2 section 4.5).

A few-step student predicts x0. The sampler mixes it with noise at the next t of its list:

    x_{t_1} = eps_1,   x0_s = student.x0(x_{t_s}, t_s, y),   x_{t_{s+1}} = interpolate(x0_s, eps_{s+1}, t_{s+1})

The noise is FRESH, or after the first `ode_steps` steps what the step itself found, eps_{s+1} = (x_{t_s} -
(1 - t_s) x0_s) / t_s: there the sample follows the student's ODE, and one noise makes one picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.conditions import ConditionBatch
from distill.sampling.flow import interpolate
from distill.sampling.guidance import Denoiser


@torch.no_grad()
def rollout(
    student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor, num_done: int, ode_steps: int = 0
) -> Tensor:
    """The student's input x_t at t_list[num_done] after `num_done` steps of its own sampler.

    Args:
        noise: (K, B, *sample_shape), K = `num_noises`: one independent draw per step of the list.
        t_list: descending (S); t_list[0] is the t of the first step.
        num_done: 0 gives interpolate(0, noise[0], t_list[0]), which is exactly the noise if t_list[0] = 1.
    """
    x_t = t_list[0].to(noise) * noise[0]
    for step in range(num_done):
        x0 = student.x0(x_t, t_list[step].to(noise).expand(x_t.shape[0]), y)
        x_t = next_input(x0, x_t, noise, t_list, step, ode_steps)
    return x_t


@torch.no_grad()
def few_step_sample(student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor, ode_steps: int = 0) -> Tensor:
    """Samples x0 (B, *sample_shape) of the student; for the arguments see `rollout`."""
    last = len(t_list) - 1
    x_t = rollout(student, noise, y, t_list, last, ode_steps)
    return student.x0(x_t, t_list[last].to(noise).expand(x_t.shape[0]), y)


def next_input(x0: Tensor, x_t: Tensor, noise: Tensor, t_list: Tensor, step: int, ode_steps: int) -> Tensor:
    """x_t at t_list[step + 1] of samples that step `step` took from x_t to x0."""
    t, t_next = t_list[step].to(x_t), t_list[step + 1].to(x_t)
    eps = (x_t - (1 - t) * x0) / t if step < ode_steps else noise[step + 1]
    return interpolate(x0, eps, t_next)


def num_noises(num_steps: int, ode_steps: int) -> int:
    """Independent noises that a sample takes: one where it follows the ODE all the way, else one per step."""
    return 1 if ode_steps >= num_steps - 1 else num_steps
