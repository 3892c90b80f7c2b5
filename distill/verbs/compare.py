"""Several students of one teacher on one page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.config import EvalConfig, TeacherConfig
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.drawing import DRAWN
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.files import new_folder
from distill.latents.decoding import decoder_for
from distill.processes import Processes, default_device, leave_others
from distill.report import check_columns, write_report
from distill.sampling import in_precision
from distill.sampling.samplers import Sampler, load_sampler
from distill.verbs.load import placed, vae_of

GRID_ROWS = 8


@dataclass(frozen=True)
class Comparison:
    """report: the page. measured: by the name of each sampler, the teacher's first. notes: what stood in for what."""

    report: Path
    measured: dict[str, Measured]
    notes: list[str]


def compare(
    students: Sequence[str | Path],
    teacher: str | Path | TeacherConfig = "embedded",
    config: EvalConfig | None = None,
    *,
    output: str | Path,
) -> Comparison | None:
    """Draw all from the same noise and conditions, measure, and write one page.

    Args:
        students: run or student folders.
        teacher: the one model that they were distilled from; a `TeacherConfig` gives its guidance, steps and solver.
        config: how many images, which references; None for the defaults. output: a new folder for the page; a call
            that was cut off goes on with what it had drawn.

    Returns: None on all processes but the main one.
    Raises: UserError where a student is a teacher, the teacher a student, or they do not make the same images.
    """
    config = config or EvalConfig()
    folder = new_folder(str(output), begun=DRAWN)
    settings = teacher if isinstance(teacher, TeacherConfig) else TeacherConfig(path=str(teacher))
    paths = [str(path) for path in students]
    reference = placed(load_sampler(settings.path, settings))
    if reference.role != "teacher":
        raise UserError(f"--teacher {settings.path} is a student; give the model that it was distilled from")
    samplers = [placed(load_sampler(path, replace(settings, path=path))) for path in paths]
    names = [Path(path).name for path in paths]
    for sampler, name, path in zip(samplers, names, paths, strict=True):
        _check_student(sampler, path, reference)
        sampler.name = f"{name if names.count(name) == 1 else path}, {sampler.num_steps} steps"
    others = [*results.teachers_at((s.num_steps for s in samplers), reference, settings), *samplers]
    check_columns([(sampler.name, sampler.role) for sampler in [reference, *others]])
    config = replace(config, vae=vae_of(config.vae, [*paths, settings.path]))
    arms = [in_precision(sampler, config.mixed_precision) for sampler in (reference, *others)]
    device, shape = default_device(), reference.model.sample_shape
    decoder = decoder_for(config.vae, shape, device)
    evaluator = None
    if Processes.all().is_main:
        evaluator = Evaluator(config, device, shape, settings.path, decoder)
        evaluator.use_teacher_reference(arms[0], settings.path)
    drawings = results.draw_for_report(evaluator, arms, config, decoder, GRID_ROWS, folder / DRAWN)
    leave_others()
    if evaluator is None:
        return None
    entries = results.measured_entries(evaluator, drawings, GRID_ROWS)
    routing = [results.routing_of("teacher", reference.model)]
    routing += [results.routing_of(student.name, student.model) for student in samplers]
    page = results.page(
        "Students of one teacher",
        f"{len(samplers)} students and {settings.path}, the same noise and labels for all",
        entries,
        evaluator,
        routing=routing,
        seeds={"evaluate": config.seed},
    )
    measured = {entry.sampler.name: entry.measured for entry in entries}
    report = write_report(page, folder)
    shutil.rmtree(folder / DRAWN)
    return Comparison(report, measured, evaluator.notes)


def _check_student(sampler: Sampler, path: str, reference: Sampler) -> None:
    if sampler.role != "student":
        raise UserError(f"{path} is no student; only students are compared, with the one model that --teacher names")
    if sampler.model.sample_shape != reference.model.sample_shape:
        raise UserError(f"{path} makes {sampler.model.sample_shape}; the teacher {reference.model.sample_shape}")
    if sampler.condition != reference.condition:
        raise UserError(f"{path} knows {sampler.condition}; the teacher {reference.condition}")
