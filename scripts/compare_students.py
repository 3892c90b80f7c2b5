"""Students trained in several ways, from several seeds, compared on one page: the queue of an experiment.

    python scripts/compare_students.py configs/compare/edge_preservation.yaml [key=value ...]

Trains the teachers and students that are missing, with `train` and `run`, then writes OUTPUT/pages/VARIANT/report.html
with `compare`. Start it several times, in the same way, and the processes share the work; started again after a stop
it goes on. Each process takes as many threads as OMP_NUM_THREADS says.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distill
from distill.comparison.jobs import run_queue
from distill.comparison.training import check_same_config
from distill.config import (
    CONFIG_FILE,
    RoutingConfig,
    TrainConfig,
    build_config,
    load_config,
    merge_values,
    read_values,
    with_variant,
)
from distill.errors import UserError
from distill.objectives import RunConfig
from distill.progress import logger
from distill.training.checkpoint import checkpoints


@dataclass
class Settings:
    """baseline: the arm that others are compared with. evaluate: of the comparison."""

    output: str
    baseline: str
    teacher_seeds: list[int] = field(default_factory=lambda: [0, 1])
    student_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    evaluate: distill.EvalConfig = field(default_factory=distill.EvalConfig)


@dataclass(frozen=True)
class Experiment:
    """teacher: as a file for `train`, or the `path` of a model that is there. student: as a file for `run`.

    arms: of each the changes to `teacher` and `student`; or `retrofit_of`, an arm whose teacher gets the `routing`.
    variants: of each the changes to `student`, and the `arms` that take part, all by default.
    """

    settings: Settings
    teacher: dict[str, Any]
    student: dict[str, Any]
    arms: dict[str, Any]
    variants: dict[str, Any]

    @classmethod
    def load(cls, path: str, overrides: Sequence[str]) -> Experiment:
        """Raises: UserError as `read_values`, and where a section is missing or no mapping."""
        values = read_values(path, overrides)
        sections = {name: values.pop(name, None) for name in ("teacher", "student", "arms", "variants")}
        for name, section in sections.items():
            if not isinstance(section, dict):
                raise UserError(f"{path}: {name} must be a section; got {section!r}")
        return cls(build_config(Settings, values), **sections)


@dataclass(frozen=True)
class Job:
    """One model to train into `folder`, as `train` or `run` does. retrofit_of: a folder whose model it begins as."""

    folder: Path
    config: TrainConfig | RunConfig
    retrofit_of: Path | None = None
    routing: RoutingConfig | None = None

    @property
    def name(self) -> str:
        return str(self.folder)

    @property
    def is_done(self) -> bool:
        """Whether the model is there. Raises: UserError if it was trained with another configuration."""
        if not (self.folder / ("teacher" if isinstance(self.config, TrainConfig) else "student")).is_dir():
            return False
        check_same_config(self.folder, load_config(type(self.config), self.folder / CONFIG_FILE), self.config)
        return True

    def do(self) -> None:
        logger.info(f"{self.name} ...")
        resume = bool(checkpoints(self.folder))
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(self.config, RunConfig):
            distill.run(self.config, resume=resume)
            return
        if self.retrofit_of and self.config.start.path and not Path(self.config.start.path).exists():
            distill.retrofit(self.retrofit_of, self.config.start.path, self.routing)
        distill.train(self.config, resume=resume)


def teacher_path(experiment: Experiment, arm: str, seed: int) -> str:
    return experiment.teacher.get("path") or str(teacher_folder(experiment, arm, seed))


def teacher_folder(experiment: Experiment, arm: str, seed: int) -> Path:
    return Path(experiment.settings.output, "teachers", arm, f"seed{seed}")


def student_folder(experiment: Experiment, variant: str, arm: str, teacher_seed: int, seed: int) -> Path:
    return Path(experiment.settings.output, "students", variant, arm, f"teacher{teacher_seed}_seed{seed}")


def arms_of(experiment: Experiment, variant: str) -> list[str]:
    return experiment.variants[variant].get("arms") or list(experiment.arms)


def teacher_job(experiment: Experiment, arm: str, seed: int) -> Job:
    settings, folder = experiment.arms[arm] or {}, teacher_folder(experiment, arm, seed)
    values = merge_values(experiment.teacher, settings.get("teacher", {}))
    fixed: dict[str, Any] = {"output": str(folder), "train": {"seed": seed}}
    origin, routing = settings.get("retrofit_of"), None
    if origin is not None:
        values.pop("model", None)
        fixed["start"] = {"path": str(folder.with_name(f"seed{seed}_retrofitted"))}
        routing = build_config(RoutingConfig, {"scale": "count", **settings.get("routing", {})})
    train = build_config(TrainConfig, merge_values(values, fixed))
    return Job(folder, train, origin and teacher_folder(experiment, origin, seed), routing)


def student_job(experiment: Experiment, variant: str, arm: str, teacher_seed: int, seed: int) -> Job:
    folder = student_folder(experiment, variant, arm, teacher_seed, seed)
    values = experiment.student
    for change in ((experiment.arms[arm] or {}).get("student", {}), experiment.variants[variant].get("student", {})):
        values = merge_values(with_variant(values, "objective", change.get("objective", {}).get("name", "")), change)
    teacher = {"path": teacher_path(experiment, arm, teacher_seed)}
    fixed = {"output": str(folder), "teacher": teacher, "train": {"seed": seed}}
    return Job(folder, build_config(RunConfig, merge_values(values, fixed)))


def all_jobs(experiment: Experiment) -> Iterator[Job]:
    """Teachers before what begins from them, seeds outermost, so that a part of the work is balanced."""
    plain_first = sorted(experiment.arms, key=lambda arm: "retrofit_of" in (experiment.arms[arm] or {}))
    for teacher_seed in experiment.settings.teacher_seeds:
        for arm in plain_first if "path" not in experiment.teacher else ():
            yield teacher_job(experiment, arm, teacher_seed)
        for seed in experiment.settings.student_seeds:
            for variant in experiment.variants:
                for arm in arms_of(experiment, variant):
                    yield student_job(experiment, variant, arm, teacher_seed, seed)


def report(experiment: Experiment, variant: str) -> list[Path]:
    """The page of a variant, with the trainings that are there of each arm; none if the baseline has none."""
    settings = experiment.settings
    groups = {}
    for arm in sorted(arms_of(experiment, variant), key=lambda arm: arm != settings.baseline):
        folders = [
            student_folder(experiment, variant, arm, teacher_seed, seed)
            for teacher_seed in settings.teacher_seeds
            for seed in settings.student_seeds
        ]
        if found := [folder for folder in folders if (folder / "student").is_dir()]:
            groups[arm] = found
    if settings.baseline not in groups or len(groups) < 2:
        return []
    guidance = experiment.student.get("teacher", {})
    teacher = teacher_path(experiment, settings.baseline, settings.teacher_seeds[0])
    shown = distill.TeacherConfig(path=teacher, **guidance)
    output = Path(settings.output, "pages", variant)
    shutil.rmtree(output, ignore_errors=True)
    made = distill.compare(teacher=shown, config=settings.evaluate, output=output, groups=groups)
    return [made.report] if made else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/compare/edge_preservation.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as student_seeds=[0]")
    phase = parser.add_mutually_exclusive_group()
    phase.add_argument("--dry-run", action="store_true", help="list the models that are missing")
    phase.add_argument("--report", action="store_true", help="write the pages of what is there")
    args = parser.parse_args()
    try:
        experiment = Experiment.load(args.config, args.overrides)
        jobs = list(all_jobs(experiment))
        if args.dry_run:
            print("\n".join(job.name for job in jobs if not job.is_done))
        elif args.report or not run_queue(jobs, lambda job: job.is_done, Job.do):
            print("\n".join(str(page) for variant in experiment.variants for page in report(experiment, variant)))
    except (ValueError, OSError) as error:
        sys.exit(f"compare_students: error: {error}")


if __name__ == "__main__":
    main()
