"""Models with the sampler they are made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, condition_of, take_rows
from distill.conditions import num_rows as num_rows_of
from distill.config import CONFIG_FILE, TeacherConfig, checks, read_values
from distill.errors import UserError
from distill.files import read_json
from distill.models import Backbone, load_model, model_folder, save_model
from distill.models.families import MODEL_FOLDERS
from distill.models.launching import CapturedModel
from distill.sampling.few_step import few_step_sample, num_noises
from distill.sampling.guidance import Denoiser, guided
from distill.sampling.solvers import SOLVERS

SAMPLER_FILE = "sampler.json"
MAX_GRID = 200  # images in the grid of a report


M = TypeVar("M", bound=Backbone)


@dataclass
class Sampler(Generic[M]):
    """One way to draw samples from one model.

    description: everything that defines the sampler except the weights; equal descriptions draw equal images.
    draw: noise (K, B, *sample_shape), y with B rows -> samples (B, *sample_shape).
    num_noises: K, the independent noises that a sample needs: one for an ODE, one per step for a student or an SDE.
    evaluations: forward passes of the network per sample, including guidance.
    t_list: timesteps of a student, descending (S); empty for a teacher, which takes any timesteps.
    ode_steps: of a student, see `few_step`.
    path: where the model was loaded from; empty if it was not loaded.
    """

    name: str
    role: Literal["teacher", "student"]
    description: str
    model: M
    draw: Callable[[Tensor, ConditionBatch], Tensor]
    num_steps: int
    num_noises: int
    evaluations: int
    t_list: Tensor
    ode_steps: int = 0
    path: str = ""

    @property
    def condition(self) -> Condition:
        return condition_of(self.model)


def teacher_sampler(name: str, model: M, teacher: TeacherConfig, num_steps: int) -> Sampler[M]:
    """A sampler that solves the ODE or SDE of a model with guidance.

    Raises: UserError if `teacher.cfg_channels` exceeds the channels of the model; ValueError for too few steps.
    """
    channels = teacher.cfg_channels
    if channels is not None and channels > model.sample_shape[0]:
        raise UserError(f"teacher.cfg_channels = {channels}; the model has {model.sample_shape[0]}")
    denoiser = guided(CapturedModel(model), condition_of(model), teacher)
    solver = SOLVERS[teacher.solver]
    grid = solver.grid(num_steps, model.t_range)

    def draw(noise: Tensor, y: ConditionBatch) -> Tensor:
        return solver.solve(denoiser.velocity_field(y), noise, grid)

    low, high = teacher.interval
    description = f"{num_steps} {teacher.solver} steps, cfg_scale {teacher.cfg_scale:g}"
    if teacher.interval != (0.0, 1.0):
        description += f" for t in [{low:g}, {high:g}]"
    if channels is not None:
        description += f" on channels 0 to {channels - 1}"
    if teacher.cfg_rescale:
        description += f", rescaled by {teacher.cfg_rescale:g}"
    evaluations, noises = denoiser.evaluations(solver.evaluated(grid)), solver.num_noises(num_steps)
    return Sampler(name, "teacher", description, model, draw, num_steps, noises, evaluations, torch.empty(0))


def few_step_sampler(name: str, model: M, t_list: Tensor, ode_steps: int = 0) -> Sampler[M]:
    """The sampler of a student with its list of t; for `ode_steps` see `few_step`."""
    denoiser = Denoiser(CapturedModel(model), condition_of(model))

    def draw(noise: Tensor, y: ConditionBatch) -> Tensor:
        return few_step_sample(denoiser, noise, y, t_list, ode_steps)

    noises = num_noises(len(t_list), ode_steps)
    kind = "fresh noise" if not ode_steps else "ODE" if noises == 1 else f"fresh noise after {ode_steps} ODE steps"
    description = f"few-step, {kind}, t = {', '.join(f'{t:.3g}' for t in t_list.tolist())}"
    return Sampler(name, "student", description, model, draw, len(t_list), noises, len(t_list), t_list, ode_steps)


def save_student(model: Backbone, t_list: Tensor, folder: Path, ode_steps: int = 0) -> None:
    """Write the student as a folder that `load_sampler` reads: the model, its list of t and its ODE steps."""
    save_model(model, folder)
    values = {"kind": "few_step", "t_list": t_list.tolist(), "ode_steps": ode_steps}
    (folder / SAMPLER_FILE).write_text(json.dumps(values, indent=2))


def configured_vae(path: str) -> str | None:
    """The autoencoder named in the configuration of the run that the model is from; None if there is none.

    path: as in `model_folder`.
    """
    values = _run_config(path)
    return next((vae for name in ("evaluate", "data") if (vae := (values.get(name) or {}).get("vae"))), None)


def teacher_of(path: str) -> str | None:
    """The teacher of the model that `path` names: the one that its run was distilled from, or `path` if it is none.

    path: as in `model_folder`. None for a student outside its run's folder, whose teacher is not known.
    """
    folder = model_folder(path)
    if not (folder / SAMPLER_FILE).is_file():
        return path
    return (_run_config(path).get("teacher") or {}).get("path")


def _run_config(path: str) -> dict[str, Any]:
    """The configuration of the run or training that the model is from; empty if it is outside its folder."""
    folder = model_folder(path)
    file = folder.parent / CONFIG_FILE
    return read_values(file) if folder.name in MODEL_FOLDERS and file.is_file() else {}


def load_sampler(path: str, teacher: TeacherConfig) -> Sampler[Backbone]:
    """Load a folder's model with its sampler: few-step if the folder has a sampler file, otherwise the teacher's.

    path: as in `model_folder`.
    """
    folder = model_folder(path)
    model = load_model(folder, teacher.prompts)
    if not (folder / SAMPLER_FILE).is_file():
        sampler = teacher_sampler(f"teacher, {teacher.steps} steps", model, teacher, teacher.steps)
    else:
        t_list, ode_steps = read_steps(folder / SAMPLER_FILE)
        sampler = few_step_sampler(f"student, {len(t_list)} steps", model, t_list, ode_steps)
    sampler.path = path
    return sampler


def read_steps(file: Path) -> tuple[Tensor, int]:
    """The list of t and the number of ODE steps that `save_student` wrote. Raises: UserError if damaged."""
    values = read_json(file)
    t_list, ode_steps = values.get("t_list"), values.get("ode_steps", 0)
    if not isinstance(t_list, list) or not all(type(t) in (int, float) for t in t_list):
        raise UserError(f"{file}: t_list must be a list of numbers; got {t_list!r}")
    checks.t_list(f"{file}: t_list", t_list)
    if type(ode_steps) is not int or not 0 <= ode_steps <= len(t_list):
        raise UserError(f"{file}: ode_steps must be a whole number from 0 to {len(t_list)}; got {ode_steps!r}")
    return torch.tensor(t_list, dtype=torch.float32), ode_steps


def check_teacher(path: str) -> None:
    """Raise UserError if a student is given for a teacher."""
    if (model_folder(path) / SAMPLER_FILE).is_file():
        raise UserError(f"teacher.path = {path} is a student; give the model that it was distilled from")


def num_in_grid(num_rows: int, num_distinct: int, num_images: int) -> int:
    """Images in the grid of a report: `num_rows` of each condition, but at most the `num_images` that are drawn."""
    return min(num_rows * num_distinct, MAX_GRID, num_images)


def grid_conditions(condition: Condition, num_rows: int) -> ConditionBatch:
    """`num_rows` of every example, grouped by example: the columns of a grid."""
    examples = condition.examples()
    return take_rows(examples, torch.arange(num_rows_of(examples)).repeat_interleave(num_rows))
