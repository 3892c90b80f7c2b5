"""From noise to samples: ODE solvers for the teacher, the few-step sampler of the student."""

from distill.sampling.few_step import few_step_sample, rollout
from distill.sampling.ode import ODE_SOLVERS, euler, heun

__all__ = ["ODE_SOLVERS", "euler", "few_step_sample", "heun", "rollout"]
