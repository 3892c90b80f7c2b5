"""What the student is trained on: inputs that its own sampler would meet.

Each rollout takes (student, noise (S, B, C, H, W), y (B), t_list (S), generator) and returns the inputs, their
t and their labels, one row per sample that the student is then asked to finish with a gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.flow import interpolate
from distill.guidance import Denoiser
from distill.sampling import rollout

StudentInputs = tuple[Tensor, Tensor, Tensor]
Rollout = Callable[[Denoiser, Tensor, Tensor, Tensor, torch.Generator], StudentInputs]


def random_step(
    student: Denoiser, noise: Tensor, y: Tensor, t_list: Tensor, generator: torch.Generator
) -> StudentInputs:
    """Stop before one random step, the same for the whole batch and on every process: B rows."""
    index = int(torch.randint(len(t_list), (1,), generator=generator))
    x_t = rollout(student, noise, y, t_list, index)
    return x_t, t_list[index].to(x_t).expand(len(y)), y


@torch.no_grad()
def every_step(
    student: Denoiser, noise: Tensor, y: Tensor, t_list: Tensor, generator: torch.Generator
) -> StudentInputs:
    """Stop before every step of each trajectory: S B rows for little more than one rollout."""
    inputs = [t_list[0] * noise[0]]
    for index in range(len(t_list) - 1):
        x0 = student.x0(inputs[-1], t_list[index].to(noise).expand(len(y)), y)
        inputs.append(interpolate(x0, noise[index + 1], t_list[index + 1]))
    t = t_list.to(noise).repeat_interleave(len(y))
    return torch.cat(inputs), t, y.repeat(len(t_list))


ROLLOUTS: dict[str, Rollout] = {"random_step": random_step, "every_step": every_step}
