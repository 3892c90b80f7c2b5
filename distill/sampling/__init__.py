"""From noise to samples: the path, timesteps, guidance, ODE solvers, the few-step sampler and seeded drawing.

May import models, conditions, latents, config, assets, seeds and errors.
"""

from distill.sampling.few_step import few_step_sample, rollout
from distill.sampling.flow import combine_cfg, interpolate, t_like, velocity_to_x0
from distill.sampling.guidance import Denoiser
from distill.sampling.ode import ODE_SOLVERS, euler, heun
from distill.sampling.samplers import (
    Sampler,
    draw_batches,
    draw_images,
    few_step_sampler,
    grid_conditions,
    load_sampler,
    noise_for,
    ode_sampler,
    save_student,
)
from distill.sampling.schedules import T_SAMPLERS, logit_normal_t, shift_t, t_grid, uniform_t

__all__ = [
    "ODE_SOLVERS",
    "T_SAMPLERS",
    "Denoiser",
    "Sampler",
    "combine_cfg",
    "draw_batches",
    "draw_images",
    "euler",
    "few_step_sample",
    "few_step_sampler",
    "grid_conditions",
    "heun",
    "interpolate",
    "load_sampler",
    "logit_normal_t",
    "noise_for",
    "ode_sampler",
    "rollout",
    "save_student",
    "shift_t",
    "t_grid",
    "t_like",
    "uniform_t",
    "velocity_to_x0",
]
