"""What the student is trained on: inputs that its own sampler would meet. No rollout carries a gradient."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from distill.conditions import (
    Condition,
    ConditionBatch,
    concat_rows,
    repeat_rows,
    slice_rows,
    take_rows,
    to_device,
)
from distill.objectives.config import RunConfig
from distill.sampling import Denoiser, next_input, num_noises, rollout
from distill.seeds import generator_for
from distill.training.batches import local_rows, rank_slice
from distill.training.learner import Learner


class StudentInputs(NamedTuple):
    """Rows that the student is asked to finish.

    x_in: (K, *sample_shape). t_in: (K). y: K rows. step: (K), the step of the list, from 0. x0: (D, *sample_shape),
        what it made of the first D <= K rows on its way.
    """

    x_in: Tensor
    t_in: Tensor
    y: ConditionBatch
    step: Tensor
    x0: Tensor

    def take(self, rows: Tensor) -> StudentInputs:
        """Some rows of inputs that are all finished."""
        return StudentInputs(self.x_in[rows], self.t_in[rows], take_rows(self.y, rows), self.step[rows], self.x0[rows])


class Rollout(ABC):
    """Gives the batches of student inputs of one update after the other.

    Args:
        t_list: the student's timesteps, descending (S). num_batches: batches that an update takes.
    """

    def __init__(
        self,
        config: RunConfig,
        accelerator: Accelerator,
        condition: Condition,
        sample_shape: tuple[int, ...],
        t_list: Tensor,
        learner: Learner,
        num_batches: int,
    ) -> None:
        self.batch_size, self.seed = config.train.batch_size, config.train.seed
        self.accelerator, self.condition, self.sample_shape = accelerator, condition, sample_shape
        self.t_list, self.ode_steps = t_list, config.student.ode_steps
        self.learner, self.num_batches = learner, num_batches

    @abstractmethod
    def inputs(self, generator: torch.Generator) -> StudentInputs:
        """The next batch, this process's share of it. Random numbers are drawn alike on every process."""

    @staticmethod
    @abstractmethod
    def cost(batch_size: int, num_steps: int) -> tuple[int, float, int]:
        """Rows of a batch, passes of the student that make its inputs, and passes that finish them."""

    def begin(self, step: int) -> None:  # noqa: B027
        """Update number `step` begins; until its last batch the student stays as it is."""

    @torch.no_grad()
    def finished(self, inputs: StudentInputs) -> Tensor:
        """x0 of every row; the student is asked for those alone that its rollout has left."""
        num_done, num_rows = len(inputs.x0), len(inputs.x_in)
        if num_done == num_rows:
            return inputs.x0
        y = slice_rows(inputs.y, num_done, num_rows)
        with self.accelerator.autocast():
            return torch.cat([inputs.x0, self.student.x0(inputs.x_in[num_done:], inputs.t_in[num_done:], y)])

    @property
    def student(self) -> Denoiser:
        """The student as it is, for passes without a gradient."""
        return Denoiser(self.learner.predict, self.condition)

    def _start(self, size: int, generator: torch.Generator) -> tuple[Tensor, ConditionBatch]:
        """This process's share of noise (K, size, *sample_shape) and of as many conditions."""
        y = rank_slice(self.condition.random(size, generator), self.accelerator)
        num = num_noises(len(self.t_list), self.ode_steps)
        noise = torch.randn(num, size, *self.sample_shape, generator=generator)
        return rank_slice(noise, self.accelerator, dim=1), y

    @torch.no_grad()
    def _before_step(self, index: int, noise: Tensor, y: ConditionBatch) -> StudentInputs:
        """Trajectories that have come to step `index`."""
        with self.accelerator.autocast():
            x_t = rollout(self.student, noise, y, self.t_list, index, self.ode_steps)
        step = torch.full((len(x_t),), index, device=x_t.device)
        return StudentInputs(x_t, self.t_list[index].to(x_t).expand(len(x_t)), y, step, x0=x_t[:0])

    @torch.no_grad()
    def _all_steps(self, noise: Tensor, y: ConditionBatch) -> StudentInputs:
        """Inputs of every step of trajectories, step by step: one rollout finishes all but those of the last step."""
        t_list, size = self.t_list.to(noise), noise.shape[1]
        inputs, done = [t_list[0] * noise[0]], [noise[0, :0]]
        with self.accelerator.autocast():
            for index in range(len(t_list) - 1):
                done.append(self.student.x0(inputs[-1], t_list[index].expand(size), y))
                inputs.append(next_input(done[-1], inputs[-1], noise, t_list, index, self.ode_steps))
        step = torch.arange(len(t_list), device=noise.device).repeat_interleave(size)
        return StudentInputs(torch.cat(inputs), t_list[step], repeat_rows(y, len(t_list)), step, torch.cat(done))


class RandomStep(Rollout):
    """Every batch is rolled out anew and stops before one random step, the same for all rows and processes: B rows."""

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        noise, y = self._start(self.batch_size, generator)
        return self._before_step(int(torch.randint(len(self.t_list), (1,), generator=generator)), noise, y)

    @staticmethod
    def cost(batch_size: int, num_steps: int) -> tuple[int, float, int]:
        return batch_size, batch_size * (num_steps - 1) / 2, batch_size


class LastStep(Rollout):
    """Every batch is rolled out anew up to the last step, which makes the samples that a user gets: B rows."""

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        return self._before_step(len(self.t_list) - 1, *self._start(self.batch_size, generator))

    @staticmethod
    def cost(batch_size: int, num_steps: int) -> tuple[int, float, int]:
        return batch_size, batch_size * (num_steps - 1), batch_size


class EveryStep(Rollout):
    """Every batch is rolled out anew and is asked at all steps of its B trajectories: S B rows."""

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        return self._all_steps(*self._start(self.batch_size, generator))

    @staticmethod
    def cost(batch_size: int, num_steps: int) -> tuple[int, float, int]:
        return batch_size * num_steps, batch_size * (num_steps - 1), batch_size


class Shared(Rollout):
    """All batches of an update come out of one set of trajectories, for the student stands still between them.

    Of a batch's B places, groups of G, the fewest that waste nothing, share trajectories: a group's rows in N batches
    are those of N G / S trajectories through all S steps, shuffled. As many evaluations as rows, where `RandomStep`
    needs (S + 1) / 2 times as many; the same rows whatever the number of processes, where G divides a process's share.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        num_steps, own = len(self.t_list), self.batch_size // self.accelerator.num_processes
        group = num_steps // math.gcd(self.num_batches, num_steps)
        self._group = group if own % group == 0 else own
        self._num_trajectories = -(-self.num_batches * self._group // num_steps)  # of a group
        self.begin(0)

    def begin(self, step: int) -> None:
        self._step, self._part = step, 0
        self._batches: list[StudentInputs] = []

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        if not self._batches:  # also between the batches of the critic's warm-up
            own = generator_for(self.seed, "rollout", self._step, self._part)
            self._batches, self._part = self._rolled_out(own), self._part + 1
        return self._batches.pop()

    @staticmethod
    def cost(batch_size: int, num_steps: int) -> tuple[int, float, int]:
        return batch_size, batch_size, 0

    @torch.no_grad()
    def _rolled_out(self, generator: torch.Generator) -> list[StudentInputs]:
        num_steps, each = len(self.t_list), self._num_trajectories
        groups = self.batch_size // self._group
        noise, y = self._start(groups * each, generator)
        shuffled = torch.rand(groups, each * num_steps, generator=generator).argsort(1)
        size, num = self.batch_size // self.accelerator.num_processes, noise.shape[1]
        parts, places = [], []
        for first in range(0, num, size):  # no more at once than a batch has
            last = min(first + size, num)
            inputs = self._all_steps(noise[:, first:last], slice_rows(y, first, last))
            parts.append(inputs._replace(x0=self.finished(inputs)))
            # Rows come step by step: where each trajectory's are.
            places.append(num_steps * first + torch.arange(num_steps * (last - first)).view(num_steps, -1).T)
        whole, place = _joined(parts), torch.cat(places).view(-1, each * num_steps)
        order = place.gather(1, local_rows(shuffled, self.accelerator))[:, : self.num_batches * self._group]
        by_batch = order.unflatten(1, (self.num_batches, self._group)).transpose(0, 1).flatten(1)
        return [whole.take(rows) for rows in to_device(by_batch, whole.x0.device)]


def _joined(parts: list[StudentInputs]) -> StudentInputs:
    y = parts[0].y
    for part in parts[1:]:
        y = concat_rows(y, part.y)
    return StudentInputs(
        torch.cat([part.x_in for part in parts]),
        torch.cat([part.t_in for part in parts]),
        y,
        torch.cat([part.step for part in parts]),
        torch.cat([part.x0 for part in parts]),
    )


ROLLOUTS: dict[str, type[Rollout]] = {
    "random_step": RandomStep,
    "every_step": EveryStep,
    "shared": Shared,
    "last_step": LastStep,
}
