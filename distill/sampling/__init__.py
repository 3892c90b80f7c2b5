"""From noise to samples: the path, timesteps, guidance, solvers, the few-step sampler and seeded drawing.

May import models, conditions, latents, config, files, processes, seeds and errors.
"""

from distill.sampling.drawing import describe, draw_batches, draw_images, in_precision, noise_for
from distill.sampling.few_step import few_step_sample, rollout
from distill.sampling.flow import combine_cfg, interpolate, t_like, velocity_to_x0
from distill.sampling.guidance import Denoiser
from distill.sampling.samplers import (
    Sampler,
    few_step_sampler,
    grid_conditions,
    load_sampler,
    save_student,
    teacher_sampler,
)
from distill.sampling.schedules import T_SAMPLERS, logit_normal_t, shift_t, t_grid, uniform_t
from distill.sampling.solvers import SOLVERS, euler, euler_maruyama, heun

__all__ = [
    "SOLVERS",
    "T_SAMPLERS",
    "Denoiser",
    "Sampler",
    "combine_cfg",
    "describe",
    "draw_batches",
    "draw_images",
    "euler",
    "euler_maruyama",
    "few_step_sample",
    "few_step_sampler",
    "grid_conditions",
    "heun",
    "in_precision",
    "interpolate",
    "load_sampler",
    "logit_normal_t",
    "noise_for",
    "rollout",
    "save_student",
    "shift_t",
    "t_grid",
    "t_like",
    "teacher_sampler",
    "uniform_t",
    "velocity_to_x0",
]
