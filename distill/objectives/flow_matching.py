"""The task of `train`: flow matching on data, with label dropout and an EMA."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from dar import SiT
from distill.config import TrainConfig
from distill.data.base import Dataset, shuffled_indices
from distill.latents.decoding import training_decoder
from distill.models.ema import Ema, decay_within
from distill.objectives.losses import flow_matching_loss
from distill.render import save_grid
from distill.sampling import euler
from distill.sampling.flow import interpolate
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import grid_labels
from distill.sampling.schedules import T_SAMPLERS, t_grid
from distill.seeds import generator_for
from distill.training.batches import own_rows, rank_noise, rank_slice
from distill.training.learner import Learner


class TeacherTask:
    """model and its EMA; one update = one optimizer step on flow matching."""

    def __init__(self, config: TrainConfig, model: SiT, data: Dataset, accelerator: Accelerator) -> None:
        self.config = config
        self.data = data
        self.accelerator = accelerator
        self.null_label = model.null_label
        self.sample_shape = model.sample_shape
        self.t_range = model.t_range
        self.decoder = training_decoder(config.data.vae, data, accelerator.device)
        model.gradient_checkpointing = config.train.gradient_checkpointing
        self.learner = Learner("teacher", model, config.optim, config.train.steps, accelerator)
        decay = decay_within(config.flow_matching.ema_decay, config.train.steps)
        self.ema = Ema(self.learner.module, decay, self.learner.blank)
        accelerator.register_for_checkpointing(self.ema)

    def update(self, step: int) -> dict[str, float]:
        micro_batches = zip(*(part.chunk(self.config.train.accumulation) for part in self._draw(step)), strict=True)
        closures = [lambda batch=batch: self._loss(*batch) for batch in micro_batches]
        values = self.learner.update(step, closures)
        self.ema.update(self.learner.module)
        return {f"teacher/{name}": value for name, value in values.items()}

    def _draw(self, step: int) -> tuple[Tensor, ...]:
        """x0, eps, t, y of one update: this process's share."""
        config, size, seed = self.config, self.config.train.batch_size, self.config.train.seed
        generator = generator_for(seed, "flow_matching", step)
        # Of the data a process reads its own rows; numbers are drawn for all, in the order of one alone.
        indices = own_rows(shuffled_indices(len(self.data), size, step, seed), self.accelerator)
        x0, y = self.data.batch(indices, rank_noise(generator, self.accelerator))
        eps = torch.randn(size, *self.data.sample_shape, generator=generator)
        t = T_SAMPLERS[config.flow_matching.t_sampler](size, generator).clamp(*self.t_range)
        dropped = torch.rand(size, generator=generator) < config.flow_matching.label_dropout
        eps, t, dropped = (rank_slice(part, self.accelerator) for part in (eps, t, dropped))
        x0, y = x0.to(self.accelerator.device), y.to(self.accelerator.device)
        return x0, eps, t, torch.where(dropped, self.null_label, y)

    def _loss(self, x0: Tensor, eps: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with self.accelerator.autocast():
            velocity = self.learner.model(interpolate(x0, eps, t), t, y)
        return flow_matching_loss(velocity, x0, eps)

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        """A grid of the EMA: one column a class, the same noise every time."""
        averaged = self.averaged_model
        if self.accelerator.is_main_process:
            y = grid_labels(self.null_label, num_rows=4).to(self.accelerator.device)
            noise = torch.randn(len(y), *self.sample_shape, generator=generator_for(0, "grid")).to(y.device)
            denoiser = Denoiser(averaged, self.null_label, self.config.grid_cfg_scale)
            grid = t_grid(self.config.grid_steps, t_range=self.t_range)
            samples = euler(denoiser.given(y), grid[0] * noise, grid)
            save_grid(self.decoder.decode(samples), 4, folder / f"step_{step:08d}.png")
        return {}

    @property
    def averaged_model(self) -> SiT:
        """The EMA, which is what is saved; all processes have to ask for it."""
        model = self.ema.module
        assert isinstance(model, SiT)
        return model

    def headline(self, values: dict[str, float]) -> str:
        return f"loss {values['teacher/loss']:.4f}  grad {values['teacher/grad_norm']:.2f}"
