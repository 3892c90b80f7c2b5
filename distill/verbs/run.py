"""`dar-distill run`: configuration to student folder and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dar import SiT
from distill.assets import EMBEDDED, resolve
from distill.config import RunConfig, config_to_yaml, load_config
from distill.evaluation import results
from distill.evaluation.evaluator import Evaluator
from distill.models.roles import build_roles, write_student
from distill.objectives.dmd import GRID_ROWS, DistillationTask
from distill.planning.tables import print_run_plan
from distill.report import write_report
from distill.sampling.samplers import Sampler, few_step_sampler, ode_sampler, read_class_names
from distill.training.devices import make_accelerator
from distill.training.loop import run_loop
from distill.training.preflight import preflight
from distill.training.run_folder import open_run
from distill.training.run_log import read_log


def distil(config_path: str, overrides: Sequence[str], *, resume: bool = False, dry_run: bool = False) -> None:
    """Distil, save the EMA student as `output/student`, measure and write `output/report/report.html`."""
    config = load_config(RunConfig, config_path, overrides)
    if dry_run:
        print_run_plan(config)
        return
    accelerator = make_accelerator(config)
    torch.manual_seed(config.train.seed)
    roles = build_roles(config.teacher, config.roles)
    teacher, student, fake_score = (model.to(accelerator.device) for model in roles)
    # What the report needs is looked for now: an hour of training must not end in a missing file.
    evaluator = Evaluator(config.evaluate, accelerator.device)
    evaluator.check(teacher)
    evaluator.use_teacher_reference(reference_sampler(config, teacher), config.teacher.path)
    teacher_std = preflight(teacher, student, fake_score, config.teacher)
    task = DistillationTask(config, (teacher, student, fake_score), accelerator, teacher_std, evaluator.decoder)
    folder = open_run(config, accelerator, resume=resume)
    run_loop(task, config.train, accelerator, folder, resume=resume)
    averaged = task.averaged_student
    # Processes that would wait for the report would be ended by the time limit of their group.
    accelerator.end_training()
    if accelerator.is_main_process:
        finished = write_student(averaged, task.t_list, folder)
        print(f"student: {folder / 'student'}")
        teacher = SiT.from_pretrained(resolve(config.teacher.path, "teacher")).to(accelerator.device).eval()
        path = write_run_report(config, folder, teacher, finished, task.t_list, evaluator)
        print(f"report:  {path}")


def reference_sampler(config: RunConfig, teacher: SiT) -> Sampler[SiT]:
    """The teacher at as many steps as its configuration says."""
    return ode_sampler(f"teacher, {config.teacher.steps} steps", teacher, config.teacher, config.teacher.steps)


def write_run_report(
    config: RunConfig, folder: Path, teacher: SiT, student: SiT, t_list: torch.Tensor, evaluator: Evaluator
) -> Path:
    """Draw, measure and show: the teacher at many steps and at the student's number, and the student."""
    settings, num_steps = config.teacher, config.student.steps
    slow = reference_sampler(config, teacher)
    few = few_step_sampler(f"student, {num_steps} steps", student.eval(), t_list)
    others = [*results.teachers_at([num_steps], slow, settings), few]
    entries = results.measured_entries(evaluator, slow, others, GRID_ROWS)
    for entry in entries:
        entry.measured.save(folder / "measures" / f"{entry.sampler.name.replace(', ', '_').replace(' ', '_')}.json")
    report = results.page(
        f"{few.name}, from {'the shipped teacher' if settings.path == EMBEDDED else settings.path}",
        f"Distribution matching distillation, {config.train.steps} updates, cfg_scale {settings.cfg_scale:g}",
        entries,
        evaluator,
        history=read_log(folder),
        routing=[results.routing_of("teacher", teacher), results.routing_of("student", student)],
        config_yaml=config_to_yaml(config),
        class_names=read_class_names(settings.path),
        seeds={"train": config.train.seed, "evaluate": config.evaluate.seed},
    )
    return write_report(report, folder / "report")
