"""Students of one teacher, and pictures from elsewhere, on one page: who keeps edges better, and how sure is that."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from distill import report
from distill.conditions import ClassLabels, Condition
from distill.config import EvalConfig, TeacherConfig
from distill.data.base import load_dataset
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.arms import Arm, Compared, class_table, compare_arms, comparison_files, crops, difference_table
from distill.evaluation.drawing import DRAWN
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.evaluation.references import class_balanced, read_images
from distill.latents.decoding import decoder_for
from distill.processes import Processes, default_device, leave_others
from distill.report import check_columns, write_report
from distill.sampling import in_precision
from distill.sampling.samplers import Sampler, load_sampler, num_in_grid
from distill.verbs.load import placed, vae_of
from distill.verbs.output import claimed_output

GRID_ROWS = 8
MIN_PICTURES = 4


@dataclass(frozen=True)
class Comparison:
    """report: the page; comparison.json and comparison.csv lie beside it. compared: every arm against the first.

    measured: by the name of each column, the teacher's first. notes: what stood in for what.
    """

    report: Path
    compared: list[Compared]
    measured: dict[str, Measured]
    notes: list[str]


def compare(
    students: Sequence[str | Path] = (),
    teacher: str | Path | TeacherConfig = "embedded",
    config: EvalConfig | None = None,
    *,
    output: str | Path,
    groups: Mapping[str, Sequence[str | Path]] | None = None,
    images: Mapping[str, str | Path] | None = None,
) -> Comparison | None:
    """Measure all alike and write one page, comparison.json and comparison.csv.

    Students draw from the same noise and conditions. The first arm (of students, then groups, then images) is the one
    that others are compared with.

    Args:
        students: run or student folders, an arm each.
        teacher: the one model that they were distilled from; a `TeacherConfig` gives its guidance, steps and solver.
        config: how many images, which references; None for the defaults. output: a new folder for the page; a call
            that was cut off goes on with what it had drawn.
        groups: arms of several trainings, by name; their spread is a part of every interval.
        images: arms of pictures that are there already, by name: a folder or a .npz file each.

    Returns: None on all processes but the main one.
    Raises: UserError where a student is a teacher, the teacher a student, or they do not make the same images.
    """
    config = config or EvalConfig()
    paths = list(map(str, students))
    names = [*_short(paths), *(groups or {}), *(images or {})]
    if not names or (len(names) < 2 and images):
        raise UserError("compare needs two arms: students, --group NAME=RUN,RUN or --images NAME=FOLDER")
    if len(set(names)) < len(names):
        raise UserError(f"arms need different names; got {', '.join(names)}")
    members = {name: [path] for name, path in zip(names, paths, strict=False)}
    members |= {name: list(map(str, runs)) for name, runs in (groups or {}).items()}
    if empty := [name for name, runs in members.items() if not runs]:
        raise UserError(f"--group {empty[0]} names no run")
    settings = teacher if isinstance(teacher, TeacherConfig) else TeacherConfig(path=str(teacher))
    with claimed_output(output, begun=DRAWN) as folder:
        assert folder is not None
        if members:
            return _of_students(members, images or {}, settings, config, folder)
        return _of_pictures(images or {}, config, folder)


def _short(paths: Sequence[str]) -> list[str]:
    """The names of folders; where two are called alike, of each path the part that others do not share."""
    names = [Path(path).name for path in paths]
    if len(set(names)) == len(names) or len(set(paths)) < len(paths):
        return names
    parts = [list(Path(path).parts) for path in paths]
    for end in (0, -1):
        while all(len(part) > 1 for part in parts) and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return ["/".join(part) for part in parts]


def _of_students(
    members: Mapping[str, Sequence[str]],
    images: Mapping[str, str | Path],
    settings: TeacherConfig,
    config: EvalConfig,
    folder: Path,
) -> Comparison | None:
    reference = placed(load_sampler(settings.path, settings))
    if reference.role != "teacher":
        raise UserError(f"--teacher {settings.path} is a student; give the model that it was distilled from")
    arms: dict[str, list[Sampler]] = {}
    for name, paths in members.items():
        arms[name] = [placed(load_sampler(path, replace(settings, path=path))) for path in paths]
        for number, (sampler, path) in enumerate(zip(arms[name], paths, strict=True)):
            _check_student(sampler, path, reference)
            of = "" if len(paths) == 1 else f", training {number + 1} of {len(paths)}"
            sampler.name = f"{name}, {sampler.num_steps} steps{of}"
    firsts = [arm[0] for arm in arms.values()]
    others = results.teachers_at((s.num_steps for s in firsts), reference, settings)
    columns = [(sampler.name, sampler.role) for sampler in [reference, *others, *firsts]]
    check_columns([*columns, *((name, "student") for name in images)])
    config = replace(config, vae=vae_of(config.vae, [*(p for paths in members.values() for p in paths), settings.path]))
    device, shape = default_device(), reference.model.sample_shape
    decoder = decoder_for(config.vae, shape, device)
    pictures = _read(images, config.num_images, decoder.image_shape(shape))
    if short := [name for name, (found, _) in pictures.items() if len(found) < config.num_images]:
        count = len(pictures[short[0]][0])
        raise UserError(f"--images {short[0]}: {count} pictures; students draw --num-images {config.num_images}")
    students = [sampler for arm in arms.values() for sampler in arm]
    drawn = [in_precision(sampler, config.mixed_precision) for sampler in (reference, *others, *students)]

    def made() -> Evaluator:
        evaluator = Evaluator(config, device, shape, settings.path, decoder)
        evaluator.use_teacher_reference(drawn[0], settings.path)
        return evaluator

    evaluator = Processes.all().main_alone(made)
    drawings = results.draw_for_report(evaluator, drawn, config, decoder, GRID_ROWS, folder / DRAWN)
    leave_others()
    if evaluator is None:
        return None
    by_name = {drawing.sampler.name: drawing for drawing in drawings}
    shown = [drawings[0], *(by_name[sampler.name] for sampler in (*others, *firsts))]
    entries = results.measured_entries(evaluator, shown, GRID_ROWS)
    num_grid = num_in_grid(GRID_ROWS, reference.condition.num_distinct, config.num_images)
    entries += [results.picture_entry(evaluator, name, *found, num_grid) for name, found in pictures.items()]
    labels = drawings[-1].labels
    sides = [Arm(name, [by_name[sampler.name].images for sampler in arm], labels) for name, arm in arms.items()]
    sides += [Arm(name, [found], of_found, is_paired=False) for name, (found, of_found) in pictures.items()]
    routing = [results.routing_of("teacher", reference.model)]
    routing += [results.routing_of(student.name, student.model) for student in firsts]
    title = f"{len(arms)} arms and {settings.path}, the same noise and labels for all"
    comparison = _written(sides, entries, evaluator, reference.condition, folder, title, routing)
    shutil.rmtree(folder / DRAWN)
    return comparison


def _of_pictures(images: Mapping[str, str | Path], config: EvalConfig, folder: Path) -> Comparison | None:
    if not Processes.all().is_main:
        return None
    check_columns([(name, "student") for name in images])
    pictures = _read(images, config.num_images, None)
    (first, labels), *_ = pictures.values()
    evaluator = Evaluator(config, default_device(), tuple(first.shape[1:]))
    num_grid = min(len(first), 40)
    entries = [results.picture_entry(evaluator, name, *found, num_grid) for name, found in pictures.items()]
    sides = [Arm(name, [found], of_found, is_paired=False) for name, (found, of_found) in pictures.items()]
    return _written(
        sides, entries, evaluator, ClassLabels(int(labels.max()) + 1), folder, "Pictures from elsewhere", []
    )


def _written(
    arms: Sequence[Arm],
    entries: Sequence[results.Entry],
    evaluator: Evaluator,
    condition: Condition,
    folder: Path,
    subtitle: str,
    routing: Sequence[report.Routing | None],
) -> Comparison:
    compared = compare_arms(arms, evaluator)
    paired = [arm for arm in arms if arm.is_paired][:2]
    page = results.page(
        "Comparison of " + ", ".join(arm.name for arm in arms),
        subtitle,
        entries,
        evaluator,
        condition,
        routing=routing,
        seeds={"evaluate": evaluator.config.seed},
    )
    by_class = class_table(arms, condition.group_names() or [])
    tables = [*(difference_table(one) for one in compared), *([by_class] if by_class.rows else [])]
    page = replace(
        page,
        answers=[(one.heading, one.answer) for one in compared],
        tables=tables,
        crops=crops(paired[0], paired[1]) if len(paired) == 2 else [],
    )
    measured = {entry.column.name: entry.measured for entry in entries}
    path = write_report(page, folder, comparison_files(compared, evaluator.notes))
    return Comparison(path, compared, measured, evaluator.notes)


def _read(
    images: Mapping[str, str | Path], num_images: int, shape: tuple[int, ...] | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures and labels by name, an equal number of each, of one size. Raises: UserError where they are not."""
    sets = {name: load_dataset("pictures", path) for name, path in images.items()}
    for name, data in sets.items():
        shape = shape or tuple(data.sample_shape)
        if tuple(data.sample_shape) != shape:
            raise UserError(f"--images {name}: pictures are {list(data.sample_shape)}; others are {list(shape)}")
        if len(data) < MIN_PICTURES:
            raise UserError(f"--images {name}: {len(data)} picture(s); at least {MIN_PICTURES} are needed")
    counts = {name: len(data) for name, data in sets.items()}
    if counts and min(counts.values()) < num_images and len(set(counts.values())) > 1:
        raise UserError(f"--images: the folders hold {counts}; give an equal number, or a smaller --num-images")
    found = {}
    for name, data in sets.items():
        pixels, labels = read_images(data, class_balanced(data.labels, min(num_images, len(data)), seed=0))
        found[name] = pixels, labels
    return found


def _check_student(sampler: Sampler, path: str, reference: Sampler) -> None:
    if sampler.role != "student":
        raise UserError(f"{path} is no student; only students are compared, with the one model that --teacher names")
    if sampler.model.sample_shape != reference.model.sample_shape:
        raise UserError(f"{path} makes {sampler.model.sample_shape}; the teacher {reference.model.sample_shape}")
    if sampler.condition != reference.condition:
        raise UserError(f"{path} knows {sampler.condition}; the teacher {reference.condition}")
