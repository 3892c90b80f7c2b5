"""What the student is trained on: inputs that its own sampler would meet.

Each rollout takes (student, noise (S, B, *sample_shape), y, t_list (S), generator) and carries no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, repeat_rows
from distill.sampling import rollout
from distill.sampling.flow import interpolate
from distill.sampling.guidance import Denoiser


class StudentInputs(NamedTuple):
    """Rows that the student is asked to finish.

    x_in: (K, *sample_shape). t_in: (K). y: K rows. x0: (D, *sample_shape), what it made of the first D <= K rows on
        its way.
    """

    x_in: Tensor
    t_in: Tensor
    y: ConditionBatch
    x0: Tensor


Rollout = Callable[[Denoiser, Tensor, Tensor, Tensor, torch.Generator], StudentInputs]


def random_step(
    student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor, generator: torch.Generator
) -> StudentInputs:
    """Stop before one random step, the same for the whole batch and on every process: B rows."""
    index = int(torch.randint(len(t_list), (1,), generator=generator))
    x_t = rollout(student, noise, y, t_list, index)
    return StudentInputs(x_t, t_list[index].to(x_t).expand(len(x_t)), y, x0=x_t[:0])


@torch.no_grad()
def every_step(
    student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor, generator: torch.Generator
) -> StudentInputs:
    """Stop before every step of each trajectory: S B rows, of which one rollout finishes all but the last B."""
    inputs, finished = [t_list[0] * noise[0]], [noise[0, :0]]
    for index in range(len(t_list) - 1):
        finished.append(student.x0(inputs[-1], t_list[index].to(noise).expand(noise.shape[1]), y))
        inputs.append(interpolate(finished[-1], noise[index + 1], t_list[index + 1]))
    t = t_list.to(noise).repeat_interleave(noise.shape[1])
    return StudentInputs(torch.cat(inputs), t, repeat_rows(y, len(t_list)), torch.cat(finished))


ROLLOUTS: dict[str, Rollout] = {"random_step": random_step, "every_step": every_step}
