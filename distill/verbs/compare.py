"""Several students of one teacher on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from distill.config import EvalConfig, TeacherConfig
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.files import new_folder
from distill.report import check_columns, write_report
from distill.sampling.samplers import Sampler, load_sampler, read_class_names
from distill.training.devices import default_device
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
    solver: str = "euler",
) -> Comparison:
    """Draw all from the same noise and conditions, measure, and write one page.

    Args:
        students: run or student folders.
        teacher: the one model that they were distilled from, and where it is a `TeacherConfig` its guidance and steps.
        config: how many images, which references; None for the defaults. output: a new folder for the page.

    Raises: UserError where a student is a teacher, the teacher a student, or they do not make the same images.
    """
    config = config or EvalConfig()
    folder = new_folder(str(output))
    settings = teacher if isinstance(teacher, TeacherConfig) else TeacherConfig(path=str(teacher))
    paths = [str(path) for path in students]
    slow = placed(load_sampler(settings.path, settings, solver))
    if slow.role != "teacher":
        raise UserError(f"--teacher {settings.path} is a student; give the model that it was distilled from")
    samplers = [placed(load_sampler(path, replace(settings, path=path), solver)) for path in paths]
    names = [Path(path).name for path in paths]
    for sampler, name, path in zip(samplers, names, paths, strict=True):
        _check_student(sampler, path, slow)
        sampler.name = f"{name if names.count(name) == 1 else path}, {sampler.num_steps} steps"
    others = [*results.teachers_at((s.num_steps for s in samplers), slow, settings, solver), *samplers]
    check_columns([(sampler.name, sampler.role) for sampler in [slow, *others]])
    config = replace(config, vae=vae_of(config.vae, [*paths, settings.path]))
    evaluator = Evaluator(config, default_device(), slow.model.sample_shape, settings.path)
    evaluator.use_teacher_reference(slow, settings.path)
    entries = results.measured_entries(evaluator, slow, others, GRID_ROWS)
    routing = [results.routing_of("teacher", slow.model)]
    routing += [results.routing_of(student.name, student.model) for student in samplers]
    page = results.page(
        "Students of one teacher",
        f"{len(samplers)} students and {settings.path}, the same noise and labels for all",
        entries,
        evaluator,
        routing=routing,
        class_names=read_class_names(settings.path),
        seeds={"evaluate": config.seed},
    )
    measured = {entry.sampler.name: entry.measured for entry in entries}
    return Comparison(write_report(page, folder), measured, evaluator.notes)


def _check_student(sampler: Sampler, path: str, slow: Sampler) -> None:
    if sampler.role != "student":
        raise UserError(f"{path} is no student; only students are compared, with the one model that --teacher names")
    if sampler.model.sample_shape != slow.model.sample_shape:
        raise UserError(f"{path} makes {sampler.model.sample_shape}; the teacher {slow.model.sample_shape}")
    if sampler.condition != slow.condition:
        raise UserError(f"{path} knows {sampler.condition}; the teacher {slow.condition}")
