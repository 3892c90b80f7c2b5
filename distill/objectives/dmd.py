"""The task of `run`: distribution matching distillation, data-free (DMD2, arXiv:2405.14867).

One update = `fake_score.updates` critic updates, then one student update, then one step of the EMA.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dar import SiT
from distill.config import RunConfig
from distill.latents.decoding import PIXELS, Decoder
from distill.metrics import high_frequency_ratio
from distill.models.ema import Ema, decay_within
from distill.models.sharding import shard_frozen
from distill.objectives.losses import dmd_loss, flow_matching_loss
from distill.objectives.monitor import GapByTime, Spread
from distill.objectives.rollouts import ROLLOUTS, StudentInputs
from distill.render import as_seen, save_grid
from distill.sampling.flow import interpolate, velocity_to_x0
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import draw_images, few_step_sampler, grid_labels
from distill.sampling.schedules import T_SAMPLERS, t_grid, uniform_t
from distill.seeds import generator_for
from distill.training.batches import rank_slice
from distill.training.learner import Learner
from distill.training.loop import is_logged

GRID_ROWS = 8
DrawT = Callable[[int, torch.Generator], Tensor]


class DistillationTask:
    """teacher (frozen), student and fake_score (both start as what it computes), EMA of the student."""

    def __init__(
        self,
        config: RunConfig,
        roles: tuple[SiT, SiT, SiT],
        accelerator: Accelerator,
        teacher_std: float,
        decoder: Decoder = PIXELS,
    ) -> None:
        teacher, student, fake_score = roles
        self.config = config
        self.accelerator = accelerator
        self.null_label = teacher.null_label
        self.sample_shape = teacher.sample_shape
        self.teacher_std = teacher_std
        self.decoder = decoder
        self.t_range = teacher.t_range
        self.t_list = t_grid(config.student.steps, config.student.shift, self.t_range)[:-1]
        for model in (student, fake_score):
            model.gradient_checkpointing = config.train.gradient_checkpointing
        steps, critic = config.train.steps, config.fake_score
        self.critic_steps = critic.warmup_updates + steps * critic.updates
        self.student = Learner("student", student, config.student.optim, steps, accelerator)
        self.fake_score = Learner("fake_score", fake_score, critic.optim, self.critic_steps, accelerator)
        self.teacher = shard_frozen(teacher.to(accelerator.device), accelerator)
        self.teacher_denoiser = Denoiser(
            self.teacher,
            self.null_label,
            config.teacher.cfg_scale,
            config.teacher.interval,
            config.teacher.cfg_channels,
        )
        self.ema = Ema(self.student.module, decay_within(config.student.ema_decay, steps), self.student.blank)
        self.gap = GapByTime(accelerator)
        accelerator.register_for_checkpointing(self.ema, self.gap)

    def update(self, step: int) -> dict[str, float]:
        critic = self.config.fake_score
        first = critic.warmup_updates + step * critic.updates if step else 0
        last = critic.warmup_updates + (step + 1) * critic.updates
        told = is_logged(step + 1, self.config.train)
        values: dict[str, float] = {}
        for critic_step in range(first, last):
            values |= self._update_critic(critic_step, with_lag=told and critic_step == last - 1)
        values |= self._update_student(step)
        self.ema.update(self.student.module)
        return values | (self.gap.take() if told else {})

    def _update_critic(self, step: int, *, with_lag: bool) -> dict[str, float]:
        """Flow matching of fake_score on fresh student samples, t over the whole range."""
        draw_t = T_SAMPLERS[self.config.fake_score.t_sampler]
        inputs, t, eps = self._draw("fake_score", step, draw_t)
        x0 = self._finished(inputs)
        batches = self._micro_batches(x0, eps, t, inputs.y)
        closures = [lambda batch=batch: self._critic_loss(self.fake_score.model, *batch) for batch in batches]
        values = self.fake_score.update(step, closures)
        if with_lag:
            with torch.no_grad():
                loss = self._critic_loss(self.teacher, x0, eps, t, inputs.y)
                on_teacher = self.accelerator.reduce(loss, reduction="mean")
            assert isinstance(on_teacher, Tensor)
            values["lag"] = values["loss"] / float(on_teacher)
        return {f"fake_score/{name}": value for name, value in values.items()}

    @torch.no_grad()
    def _finished(self, inputs: StudentInputs) -> Tensor:
        """x0 of every row; the student is asked for those alone that its rollout has left."""
        x_in, t_in, y = (part[len(inputs.x0) :] for part in (inputs.x_in, inputs.t_in, inputs.y))
        with self.accelerator.autocast():
            return torch.cat([inputs.x0, velocity_to_x0(x_in, self.student.module(x_in, t_in, y), t_in)])

    def _critic_loss(self, model: nn.Module, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with self.accelerator.autocast():
            velocity = model(interpolate(x0, eps, t), t, y)
        return flow_matching_loss(velocity, x0, eps)

    def _update_student(self, step: int) -> dict[str, float]:
        dmd = self.config.dmd
        inputs, t, eps = self._draw("student", step, partial(uniform_t, low=dmd.t_min, high=dmd.t_max))
        spread = Spread()

        def loss_of(batch: tuple[Tensor, ...]) -> Tensor:
            x0_gen, loss = self._student_loss(*batch)
            spread.add(x0_gen)
            return loss

        closures = [lambda batch=batch: loss_of(batch) for batch in self._micro_batches(*inputs[:3], t, eps)]
        values = self.student.update(step, closures)
        drift = spread.std(self.accelerator) / self.teacher_std - 1
        return {**{f"student/{name}": value for name, value in values.items()}, "std_drift": drift}

    def _student_loss(self, x_in: Tensor, t_in: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """x0_gen, and the distribution-matching loss from its noised x_t; gradient through x0_gen alone."""
        with self.accelerator.autocast():
            x0_gen = velocity_to_x0(x_in, self.student.model(x_in, t_in, y), t_in)
            with torch.no_grad():
                x_t = interpolate(x0_gen, eps, t)
                x0_teacher = self.teacher_denoiser.x0(x_t, t, y)
                x0_fake = velocity_to_x0(x_t, self.fake_score.module(x_t, t, y), t)
        self.gap.add(t, x0_fake, x0_teacher)
        return x0_gen.detach(), dmd_loss(x0_gen, x0_teacher, x0_fake)

    def _draw(self, role: str, step: int, draw_t: DrawT) -> tuple[StudentInputs, Tensor, Tensor]:
        """One update's student inputs, and t, eps to noise what comes out of them.

        All random numbers are drawn alike on every process, which keeps its share of the trajectories.
        """
        size = self.config.train.batch_size
        generator = generator_for(self.config.train.seed, role, step)
        y = torch.randint(self.null_label, (size,), generator=generator)
        noise = torch.randn(len(self.t_list), size, *self.sample_shape, generator=generator)
        y, noise = rank_slice(y, self.accelerator), rank_slice(noise, self.accelerator, dim=1)
        student = Denoiser(self.student.module, self.null_label)
        with self.accelerator.autocast():
            inputs = ROLLOUTS[self.config.dmd.rollout](student, noise, y, self.t_list, generator)
        per_trajectory = len(inputs.x_in) * self.accelerator.num_processes // size
        t = draw_t(per_trajectory * size, generator).clamp(*self.t_range).view(per_trajectory, size)
        eps = torch.randn(per_trajectory, size, *self.sample_shape, generator=generator)
        t, eps = (rank_slice(part, self.accelerator, dim=1).flatten(0, 1) for part in (t, eps))
        return inputs, t, eps

    def _micro_batches(self, *parts: Tensor) -> list[tuple[Tensor, ...]]:
        return list(zip(*(part.chunk(self.config.train.accumulation) for part in parts), strict=True))

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """The EMA student's samples from fixed noise, as a picture and by their high frequencies."""
        averaged = self.averaged_student
        if not self.accelerator.is_main_process:
            return {}
        labels = grid_labels(self.null_label, GRID_ROWS)
        sampler = few_step_sampler("student", averaged, self.t_list)
        size = self.config.evaluate.batch_size
        images, _ = draw_images(sampler, labels, seed=0, batch_size=size, decoder=self.decoder)
        save_grid(images, GRID_ROWS, folder / f"step_{step:08d}.png")
        return {"high_frequency_ratio": float(high_frequency_ratio(as_seen(images)))}

    @property
    def averaged_student(self) -> SiT:
        """The EMA, which is what is saved and measured; all processes have to ask for it."""
        model = self.ema.module
        assert isinstance(model, SiT)
        return model

    def headline(self, values: dict[str, float]) -> str:
        shown = {
            "critic": values.get("fake_score/loss"),
            "lag": values.get("fake_score/lag"),
            "gap": values.get("x0_gap"),
            "std": values.get("std_drift"),
            "hf": values.get("high_frequency_ratio"),
        }
        return "  ".join(f"{name} {value:.3f}" for name, value in shown.items() if value is not None)
