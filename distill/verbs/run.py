"""Configuration to student folder and report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from distill.assets import EMBEDDED
from distill.conditions import condition_of
from distill.config import config_to_yaml
from distill.data import Dataset
from distill.data.base import check_batch_size
from distill.data.checking import check_fits, check_samples
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.drawing import DRAWN, Drawing
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.files import replace_folder, resolved, write_files
from distill.latents.decoding import Decoder, decoder_for
from distill.models import Backbone
from distill.models.frozen import frozen_in
from distill.models.lora import has_adapters, plain_model, save_adapters
from distill.models.roles import load_teacher
from distill.objectives import RunConfig
from distill.objectives.dmd import sample_rows
from distill.objectives.mixture import needing_data, title_of
from distill.objectives.task import DistillationTask, build_models
from distill.objectives.watch import Watch
from distill.objectives.watching import GRID_ROWS
from distill.processes import Processes
from distill.progress import logger
from distill.report import write_report
from distill.report.training import TrainingPage, looks_table
from distill.sampling import Sampler, few_step_sampler, in_precision, save_student, teacher_sampler
from distill.sampling.samplers import check_teacher
from distill.training.checkpoint import has_checkpoint
from distill.training.devices import let_go, make_accelerator
from distill.training.loop import run_loop
from distill.training.preflight import preflight
from distill.training.run_folder import opened_run
from distill.training.run_log import read_log
from distill.verbs.configs import ConfigLike, config_of


@dataclass(frozen=True)
class Distilled:
    """student: the model's folder, which `load` takes. measured: by the name of each sampler.

    report: the page; None if `evaluate.num_images` is 0.
    """

    folder: Path
    student: Path
    report: Path | None
    measured: dict[str, Measured]


def run(
    config: ConfigLike, overrides: Sequence[str] = (), *, resume: bool = False, from_step: int | None = None
) -> Distilled | None:
    """Distil, save the EMA student as `output/student`, measure, and write `output/report/report.html`.

    Args:
        config: a `RunConfig`, a dictionary of its sections, a YAML file, or the name of a shipped recipe.
        overrides: such as "student.steps=2". resume: continue the run in its output folder.
        from_step: of the checkpoint to go on from; None for the newest. Later ones are removed.

    Returns: None on all processes but the main one.
    Raises: UserError for what the user can mend, NonFiniteError where the run diverges.
    """
    config = config_of(RunConfig, config, overrides)
    resume = resume or from_step is not None
    check_teacher(config.teacher.path)
    data = load_data(config)
    accelerator = make_accelerator(config)
    if data is not None and config.data is not None:
        check_samples(data, config.data)
    torch.manual_seed(config.train.seed)
    models = build_models(config).to(accelerator.device)
    if data is not None and config.data is not None:
        check_fits(data, models.teacher.sample_shape, condition_of(models.teacher), config.data.path)
    # What the report needs is looked for now: an hour of training must not end in a missing file.
    evaluator = None
    decoder = decoder_for(config.evaluate.vae, models.teacher.sample_shape, accelerator.device)
    if config.evaluate.num_images:
        load = partial(load_evaluator, config, models.teacher, accelerator.device, decoder)
        evaluator = Processes.all().main_alone(load)  # the only one that measures
    teacher_std = preflight(models.teacher, models.copies, config.teacher)
    folder = resolved(config.output)
    page = TrainingPage(folder, f"{title_of(config)}: {folder.name}")
    values = evaluator.values_to_watch() if evaluator else {}
    task = DistillationTask(config, models, accelerator, teacher_std, decoder, data, values, page.on_look)
    with opened_run(config, accelerator, resume=resume, data=data) as opened:
        if accelerator.is_main_process and (from_step is not None or not has_checkpoint(folder, config.train.steps)):
            shutil.rmtree(folder / DRAWN, ignore_errors=True)  # of a student that will be trained on
        if evaluator:
            for note in evaluator.notes:
                logger.info(note)
        # Sharded weights are computed in the precision that FSDP was given.
        precision = "no" if accelerator.is_fsdp2 else accelerator.mixed_precision
        with frozen_in(precision, cast(nn.Module, models.teacher)):
            run_loop(task, config.train, accelerator, folder, resume=opened.resumes, from_step=from_step)
        if accelerator.is_main_process:
            page.finish(task.watcher.watch, has_report=config.evaluate.num_images > 0)
        averaged, t_list, watch, best = (
            task.averaged_student,
            task.t_list,
            task.watcher.watch,
            task.watcher.best_student(),
        )
        del task, models  # their memory is for drawing
        let_go(accelerator)
        is_main = accelerator.is_main_process
        chosen = averaged if best is None else best
        student = plain_model(chosen)
        if is_main:
            student = write_student(chosen, t_list, folder, config.student.ode_steps)
            shutil.rmtree(folder / "student_last", ignore_errors=True)  # of a run that was ended before
            if best is not None:
                plain = plain_model(averaged)
                save = partial(save_student, plain, t_list, ode_steps=config.student.ode_steps)
                replace_folder(folder / "student_last", lambda path: save(folder=path))
        drawings = draw_run(config, _placed(student, accelerator.device), t_list, folder, evaluator, decoder)
        # Processes that would wait for the report would be ended by the time limit of their group.
        accelerator.end_training()
        if not is_main:
            return None
        if evaluator is None:
            return Distilled(folder, folder / "student", None, {})
        report, measured = write_run_report(config, folder, drawings, evaluator, watch)
        shutil.rmtree(folder / DRAWN)
        return Distilled(folder, folder / "student", report, measured)


def load_evaluator(config: RunConfig, teacher: Backbone, device: torch.device, decoder: Decoder) -> Evaluator:
    """The evaluator of a run, with the stored statistics of the teacher if they are its own."""
    path = config.teacher.path
    evaluator = Evaluator(config.evaluate, device, teacher.sample_shape, path, decoder)
    evaluator.use_teacher_reference(reference_sampler(config, teacher), path)
    return evaluator


def _placed(model: Backbone, device: torch.device) -> Backbone:
    return cast(Backbone, cast(nn.Module, model).to(device).eval())


def load_data(config: RunConfig) -> Dataset | None:
    """What the objective learns from, beside the teacher. Raises: UserError where it needs data and none is named."""
    learners = needing_data(config)
    if not learners:
        return None
    if config.data is None:
        raise UserError(f"the objective {learners[0]} learns from data: give a section data")
    data = configured_dataset(config.data)
    # Beside samples an update takes as many rows of data.
    check_batch_size(len(data), max(config.train.batch_size, sample_rows(config)))
    return data


def write_student(student: Backbone, t_list: Tensor, folder: Path, ode_steps: int = 0) -> Backbone:
    """Write `folder/student`, a plain model with its t list; adapters to `folder/adapter`. Returns: the plain model."""
    if has_adapters(student):
        replace_folder(folder / "adapter", lambda path: save_adapters(student, path))
    plain = plain_model(student)
    replace_folder(folder / "student", lambda path: save_student(plain, t_list, path, ode_steps))
    return plain


def reference_sampler(config: RunConfig, teacher: Backbone) -> Sampler:
    """The teacher at as many steps as its configuration says."""
    settings = config.teacher
    sampler = teacher_sampler(f"teacher, {settings.steps} steps", teacher, settings, settings.steps)
    return in_precision(sampler, config.evaluate.mixed_precision)


def draw_run(
    config: RunConfig,
    student: Backbone,
    t_list: Tensor,
    folder: Path,
    evaluator: Evaluator | None,
    decoder: Decoder,
) -> list[Drawing]:
    """Draw, in all processes, what the report shows: the teacher at many steps and at the student's, and the student.

    Args:
        evaluator: of the main process; None in others.
    """
    if config.evaluate.num_images == 0:
        return []
    logger.info(f"{folder / 'student'} is saved; measuring it")
    device = next(student.parameters()).device
    teacher = _placed(load_teacher(config.teacher), device)  # anew: in training it may have been cut in shards
    reference = reference_sampler(config, teacher)
    few_step = few_step_sampler(f"student, {len(t_list)} steps", student, t_list, config.student.ode_steps)
    others = [*results.teachers_at([len(t_list)], reference, config.teacher), few_step]
    samplers = [reference, *(in_precision(sampler, config.evaluate.mixed_precision) for sampler in others)]
    return results.draw_for_report(evaluator, samplers, config.evaluate, decoder, GRID_ROWS, folder / DRAWN)


def write_run_report(
    config: RunConfig, folder: Path, drawings: Sequence[Drawing], evaluator: Evaluator, watch: Watch
) -> tuple[Path, dict[str, Measured]]:
    """Measure what `draw_run` drew, and write the page."""
    settings = config.teacher
    entries = results.measured_entries(evaluator, drawings, GRID_ROWS)
    names = [entry.column.name.replace(", ", "_").replace(" ", "_") for entry in entries]
    files = {f"{name}.json": entry.measured.to_bytes() for name, entry in zip(names, entries, strict=True)}
    write_files(folder / "measures", files)
    reference, few_step = drawings[0].sampler, drawings[-1].sampler
    page = results.page(
        f"{few_step.name}, from {'the shipped teacher' if settings.path == EMBEDDED else settings.path}",
        f"{title_of(config)}, {config.train.steps} updates, cfg_scale {settings.cfg_scale:g}",
        entries,
        evaluator,
        reference.condition,
        history=read_log(folder),
        routing=[results.routing_of("teacher", reference.model), results.routing_of("student", few_step.model)],
        config_yaml=config_to_yaml(config),
        seeds={"train": config.train.seed, "evaluate": config.evaluate.seed},
    )
    page = replace(
        page,
        looks=looks_table(watch) if watch.looks else None,
        events=[str(event) for event in watch.events],
        notes=[*page.notes, *_choice(config, watch)],
    )
    return write_report(page, folder / "report"), {entry.column.name: entry.measured for entry in entries}


def _choice(config: RunConfig, watch: Watch) -> list[str]:
    """Which student was kept, and why, where it is not that of the last update."""
    best, last = watch.best_look, next((look for look in reversed(watch.looks) if look.decay is None), None)
    if not config.watch.pick or best is None or last is None or best is last:
        return []
    of = "" if best.decay is None else f", its average with a decay of {best.decay:g}"
    return [
        f"The student is that of update {best.step} of {last.step}{of}, the look with the lowest score, "
        f"{best.score:.2f} against {last.score:.2f} at the end (the table under Training); student_last is that of the "
        "last update."
    ]
