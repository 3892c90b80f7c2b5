"""What the student is trained on: inputs that its own sampler would meet. No rollout carries a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, concat_rows, repeat_rows, slice_rows, take_rows, to_device
from distill.objectives.base import Setting
from distill.sampling import rollout
from distill.sampling.flow import interpolate
from distill.sampling.guidance import Denoiser
from distill.seeds import generator_for
from distill.training.batches import rank_slice


class StudentInputs(NamedTuple):
    """Rows that the student is asked to finish.

    x_in: (K, *sample_shape). t_in: (K). y: K rows. x0: (D, *sample_shape), what it made of the first D <= K rows on
        its way.
    """

    x_in: Tensor
    t_in: Tensor
    y: ConditionBatch
    x0: Tensor

    def take(self, rows: Tensor) -> StudentInputs:
        """Some rows of inputs that are all finished."""
        return StudentInputs(self.x_in[rows], self.t_in[rows], take_rows(self.y, rows), self.x0[rows])


class Rollout(Protocol):
    """Gives the batches of student inputs of one update after the other."""

    def begin(self, step: int) -> None:
        """Update number `step` begins; until its last batch the student stays as it is."""
        ...

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        """The next batch, this process's share of it. Random numbers are drawn alike on every process."""
        ...


class _Anew:
    """Every batch is rolled out on its own, so that an update has no beginning."""

    def __init__(self, setting: Setting, num_batches: int) -> None:
        self._setting = setting

    def begin(self, step: int) -> None:
        pass


class RandomStep(_Anew):
    """Every batch is rolled out anew and stops before one random step, the same for all rows and processes: B rows."""

    @torch.no_grad()
    def inputs(self, generator: torch.Generator) -> StudentInputs:
        setting = self._setting
        noise, y = _noise_and_conditions(setting, setting.config.train.batch_size, generator)
        index = int(torch.randint(len(setting.t_list), (1,), generator=generator))
        with setting.accelerator.autocast():
            x_t = rollout(student_of(setting), noise, y, setting.t_list, index)
        return StudentInputs(x_t, setting.t_list[index].to(x_t).expand(len(x_t)), y, x0=x_t[:0])


class EveryStep(_Anew):
    """Every batch is rolled out anew and is asked at all steps of its B trajectories: S B rows."""

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        setting = self._setting
        noise, y = _noise_and_conditions(setting, setting.config.train.batch_size, generator)
        with setting.accelerator.autocast():
            return _all_steps(student_of(setting), noise, y, setting.t_list)


class Shared:
    """All batches of an update come out of one set of trajectories, for the student stands still between them.

    The B rows of each of N batches are those of N B / S trajectories through all S steps, shuffled: as many evaluations
    as rows, where `RandomStep` needs (S + 1) / 2 times as many.
    """

    def __init__(self, setting: Setting, num_batches: int) -> None:
        self._setting, self._num_batches = setting, num_batches
        self.begin(0)

    def begin(self, step: int) -> None:
        self._step, self._part = step, 0
        self._batches: list[StudentInputs] = []

    def inputs(self, generator: torch.Generator) -> StudentInputs:
        if not self._batches:  # also between the batches of the critic's warm-up
            own = generator_for(self._setting.config.train.seed, "rollout", self._step, self._part)
            self._batches, self._part = self._rolled_out(own), self._part + 1
        return self._batches.pop()

    @torch.no_grad()
    def _rolled_out(self, generator: torch.Generator) -> list[StudentInputs]:
        setting = self._setting
        processes, num_steps = setting.accelerator.num_processes, len(setting.t_list)
        size = setting.config.train.batch_size // processes
        trajectories = -(-self._num_batches * size // num_steps)
        noise, y = _noise_and_conditions(setting, trajectories * processes, generator)
        student, parts = student_of(setting), []
        with setting.accelerator.autocast():
            for first in range(0, trajectories, size):  # no more at once than a batch has
                last = min(first + size, trajectories)
                inputs = _all_steps(student, noise[:, first:last], slice_rows(y, first, last), setting.t_list)
                parts.append(inputs._replace(x0=finished(student, inputs)))
        whole = _joined(parts)
        order = to_device(torch.randperm(len(whole.x0), generator=generator), whole.x0.device)
        return [whole.take(rows) for rows in order[: self._num_batches * size].split(size)]


def student_of(setting: Setting) -> Denoiser:
    """The student as it is, for passes without a gradient."""
    return Denoiser(setting.student.predict, setting.condition)


@torch.no_grad()
def finished(student: Denoiser, inputs: StudentInputs) -> Tensor:
    """x0 of every row; the student is asked for those alone that its rollout has left."""
    num_done, num_rows = len(inputs.x0), len(inputs.x_in)
    if num_done == num_rows:
        return inputs.x0
    y = slice_rows(inputs.y, num_done, num_rows)
    return torch.cat([inputs.x0, student.x0(inputs.x_in[num_done:], inputs.t_in[num_done:], y)])


@torch.no_grad()
def _all_steps(student: Denoiser, noise: Tensor, y: ConditionBatch, t_list: Tensor) -> StudentInputs:
    """Inputs of every step of each trajectory, step by step: one rollout finishes all but those of the last step."""
    inputs, done = [t_list[0] * noise[0]], [noise[0, :0]]
    for index in range(len(t_list) - 1):
        done.append(student.x0(inputs[-1], t_list[index].to(noise).expand(noise.shape[1]), y))
        inputs.append(interpolate(done[-1], noise[index + 1], t_list[index + 1]))
    t = t_list.to(noise).repeat_interleave(noise.shape[1])
    return StudentInputs(torch.cat(inputs), t, repeat_rows(y, len(t_list)), torch.cat(done))


def _noise_and_conditions(setting: Setting, size: int, generator: torch.Generator) -> tuple[Tensor, ConditionBatch]:
    """This process's share of noise (S, size, *sample_shape) and of as many conditions."""
    y = rank_slice(setting.condition.random(size, generator), setting.accelerator)
    noise = torch.randn(len(setting.t_list), size, *setting.sample_shape, generator=generator)
    return rank_slice(noise, setting.accelerator, dim=1), y


def _joined(parts: list[StudentInputs]) -> StudentInputs:
    y = parts[0].y
    for part in parts[1:]:
        y = concat_rows(y, part.y)
    return StudentInputs(
        torch.cat([part.x_in for part in parts]),
        torch.cat([part.t_in for part in parts]),
        y,
        torch.cat([part.x0 for part in parts]),
    )


ROLLOUTS: dict[str, Callable[[Setting, int], Rollout]] = {
    "random_step": RandomStep,
    "every_step": EveryStep,
    "shared": Shared,
}
