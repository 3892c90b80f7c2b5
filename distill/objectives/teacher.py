"""The task of `train`: flow matching on data, with dropped conditions and an EMA."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.conditions import ConditionBatch, condition_of, num_rows, to_device, where_rows
from distill.config import TrainConfig
from distill.data.base import Dataset, shuffled_indices
from distill.latents.decoding import training_decoder
from distill.models.backbone import Backbone
from distill.models.ema import Ema, limited_decay
from distill.objectives.alignment import Alignment
from distill.objectives.losses import flow_matching_loss
from distill.render import save_grid
from distill.sampling import Denoiser, euler, grid_conditions, interpolate, random_t, t_grid
from distill.seeds import generator_for
from distill.training.batches import local_rows, rank_noise, rank_slice
from distill.training.devices import launch_for
from distill.training.learner import Learner
from distill.training.loop import is_due

GRID_ROWS = 4


class TeacherTask:
    """model and its EMA; one update = one optimizer step on flow matching."""

    def __init__(self, config: TrainConfig, model: Backbone, data: Dataset, accelerator: Accelerator) -> None:
        self.config = config
        self.data = data
        self.accelerator = accelerator
        self.condition = condition_of(model)
        self.sample_shape = model.sample_shape
        self.t_range = model.t_range
        space = getattr(data, "space", None)  # of latents
        self.decoder = training_decoder(config.data.vae, data.sample_shape, space, accelerator.device)
        model.gradient_checkpointing = config.train.gradient_checkpointing
        launch = launch_for(config.train, accelerator)
        self.alignment = Alignment(config.repa, model, data, accelerator) if config.repa else None
        network = self.alignment.network if self.alignment else cast(nn.Module, model)
        self.learner = Learner("teacher", network, config.optim, config.train.steps, accelerator, launch)
        self._teach = self.learner.on(self._loss, config.train.accumulation)
        decay = limited_decay(config.flow_matching.ema_decay, config.train.steps)
        self.ema = Ema(self.learner.module, decay, self.learner.meta_model)
        if self.alignment:
            self.alignment.follow(self.ema)
        accelerator.register_for_checkpointing(self.ema)

    def check(self) -> None:
        self.learner.check()

    def update(self, step: int) -> dict[str, Tensor]:
        values, rows = self._teach(step, *self._draw(step))
        self.ema.update(self.learner.module)
        if rows:
            values["alignment"] = rows[0].mean()
        return {f"teacher/{name}": value for name, value in values.items()}

    def _draw(self, step: int) -> tuple[ConditionBatch, ...]:
        """x0, eps, t, y of one update, and what features are aligned with: this process's share."""
        config, size, seed = self.config, self.config.train.batch_size, self.config.train.seed
        generator = generator_for(seed, "flow_matching", step)
        # Of the data a process reads its own rows; numbers are drawn for all, in the order of one alone.
        indices = local_rows(shuffled_indices(len(self.data), size, step, seed), self.accelerator)
        x0, y = self.data.batch(indices, rank_noise(generator, self.accelerator))
        eps = torch.randn(size, *self.data.sample_shape, generator=generator)
        t = random_t(config.flow_matching.t, size, generator, t_range=self.t_range, step=step)
        dropped = torch.rand(size, generator=generator) < config.flow_matching.label_dropout
        eps, t, dropped = (rank_slice(part, self.accelerator) for part in (eps, t, dropped))
        x0, y = to_device(x0, self.accelerator.device), to_device(y, self.accelerator.device)
        y = where_rows(dropped, self.condition.null(y), y)
        aligned = self.alignment.draw(step, indices, x0, eps, t, y, generator) if self.alignment else ()
        return x0, eps, t, y, *aligned

    def _loss(
        self, x0: Tensor, eps: Tensor, t: Tensor, y: ConditionBatch, *aligned: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        with self.accelerator.autocast():
            answer = self.learner.model(interpolate(x0, eps, t), t, y)
        if self.alignment is None:
            return flow_matching_loss(answer, x0, eps), ()
        velocity, projected = answer
        losses, weights = self.alignment.losses(projected, aligned[0]), aligned[1]
        return flow_matching_loss(velocity, x0, eps) + (weights * losses).mean(), (losses.detach(),)

    stopped = False

    def is_probed(self, step: int) -> bool:
        return is_due(step, self.config.train.grid_every, self.config.train)

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """A grid of the EMA: one column a condition, the same noise every time."""
        averaged = self.averaged_model
        if self.accelerator.is_main_process:
            y = to_device(grid_conditions(self.condition, GRID_ROWS), self.accelerator.device)
            noise = torch.randn(num_rows(y), *self.sample_shape, generator=generator_for(0, "grid"))
            denoiser = Denoiser(averaged, self.condition, self.config.grid_cfg_scale)
            grid = t_grid(self.config.grid_steps, t_range=self.t_range)
            samples = euler(denoiser.velocity_field(y), grid[0] * noise.to(self.accelerator.device), grid)
            save_grid(self.decoder.decode(samples), GRID_ROWS, folder / f"step_{step:08d}.png")
        return {}

    @property
    def trained_model(self) -> Backbone:
        """What learns, without the projector of an alignment."""
        return self._without_projector(self.learner.module)

    @property
    def averaged_model(self) -> Backbone:
        """The EMA, which is what is saved; all processes have to ask for it."""
        return self._without_projector(self.ema.module)

    def _without_projector(self, module: Any) -> Backbone:
        return module.backbone if self.alignment else module

    def headline(self, values: dict[str, float]) -> str:
        return f"loss {values['teacher/loss']:.4f}  grad {values['teacher/grad_norm']:.2f}"
