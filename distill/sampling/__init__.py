"""From noise to samples: the path, timesteps, guidance, solvers, the few-step sampler and seeded drawing.

May import models, conditions, latents, config, files, processes, seeds and errors.
"""

from distill.sampling.drawing import describe, draw_batches, draw_images, in_precision, noise_for
from distill.sampling.few_step import few_step_sample, next_input, num_noises, rollout
from distill.sampling.flow import combine_cfg, interpolate, t_like, velocity_to_x0
from distill.sampling.guidance import Denoiser, guided
from distill.sampling.samplers import (
    Sampler,
    few_step_sampler,
    grid_conditions,
    load_sampler,
    save_student,
    teacher_sampler,
)
from distill.sampling.schedules import quantile_t, random_t, shift_t, t_grid, unshift_t
from distill.sampling.solvers import SOLVERS, euler, euler_maruyama, heun

__all__ = [
    "SOLVERS",
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
    "guided",
    "heun",
    "in_precision",
    "interpolate",
    "load_sampler",
    "next_input",
    "noise_for",
    "num_noises",
    "quantile_t",
    "random_t",
    "rollout",
    "save_student",
    "shift_t",
    "t_grid",
    "t_like",
    "teacher_sampler",
    "unshift_t",
    "velocity_to_x0",
]
