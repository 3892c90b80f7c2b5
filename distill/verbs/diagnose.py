"""Models along depth and timestep: check everything, then measure, then write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from dar.diagnostics import views_of
from distill.assets import EMBEDDED
from distill.conditions import Condition, ConditionBatch, Prompts, condition_of, num_rows
from distill.config import TeacherConfig
from distill.diagnosis.images import (
    DataSource,
    balanced_examples,
    captioned_images,
    dataset_images,
    find_data,
    sampled_images,
)
from distill.diagnosis.measuring import BATCH_SIZE, Design, diagnose_model, num_forwards
from distill.diagnosis.results import Diagnosis, titled
from distill.errors import UserError
from distill.files import new_folder
from distill.models import Backbone
from distill.processes import default_device
from distill.progress import progress_bar
from distill.report.diagnosis import MAX_MODELS, write_diagnosis
from distill.report.versions import versions
from distill.sampling.samplers import Sampler, load_sampler

NUM_T, FIRST_T, LAST_T = 9, 0.05, 0.95
STAND_IN_STEPS = 25
MOST_NAMES = 10  # of prompts, on the page
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TextColumn("elapsed"),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
)


@dataclass(frozen=True)
class Subject:
    """A model to diagnose: what it is called, where it lies, how it would draw, and the names of its streams."""

    name: str
    path: str
    sampler: Sampler
    streams: Sequence[str]


def diagnose(
    models: Sequence[str | Path],
    *,
    output: str | Path,
    vs: str | Path | None = None,
    num_images: int = 200,
    data: str | None = None,
    prompts: str | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 1,
) -> tuple[Path, Diagnosis]:
    """Measure models along depth and t, each of their streams, and write page, pictures and JSON into a new folder.

    Args:
        models: model folders, run folders, transformers of diffusers, or `embedded`. vs: one more, that the others are
            compared with.
        num_images: in all, as many of each condition. data: NAME:PATH; None for Debian's Fashion-MNIST where it fits,
            else images that a model draws itself. Data of a model of prompts have captions, and come as they are.
        prompts: a folder of encoded prompts, in place of those that the models' folders name.
        batch_size: samples at once, with what a backward pass needs.

    Returns: the page, and what it shows.
    """
    folder = new_folder(str(output))
    paths = [str(path) for path in ([vs] if vs else []) + list(models)]
    device = default_device()
    subjects = load_subjects(paths, device, prompts)
    model = subjects[0].sampler.model
    condition = subjects[0].sampler.condition
    source = find_data(data, model.sample_shape, condition)
    images, y, groups = examples_of(condition, source, num_images, seed)

    started = time.perf_counter()
    with progress_bar(COLUMNS) as progress, ExitStack() as looking:
        notes = []
        if images is None:
            painter = next((subject for subject in subjects if subject.sampler.role == "teacher"), subjects[0])
            bar = progress.add_task(f"images by {painter.name}", total=num_rows(y))
            images = sampled_images(painter.sampler, y, seed, batch_size, lambda n: progress.advance(bar, n))
            notes.append(_stand_in(painter))
        t_values = torch.linspace(FIRST_T, LAST_T, NUM_T)
        design = Design.of(images, y, t_values, seed, groups, batch_size)
        streams = [(s, stream) for s in subjects for stream in looking.enter_context(views_of(s.sampler.model))]
        names = [stream.stream if len(s.streams) > 1 else "" for s, stream in streams]
        bars = [
            progress.add_task(titled(s.name, name), total=num_forwards(stream, design))
            for (s, stream), name in zip(streams, names, strict=True)
        ]
        found = [
            diagnose_model(s.name, s.path, stream, design, lambda n, bar=bar: progress.advance(bar, n), name)
            for (s, stream), name, bar in zip(streams, names, bars, strict=True)
        ]
    numbers = condition.groups(y).unique().tolist()
    diagnosis = Diagnosis(
        models=found,
        t_values=t_values.numpy(),
        num_images=num_rows(y),
        classes=numbers,
        images=source.name if source else "drawn by a model (stand-in)",
        seed=seed,
        reference=subjects[0].name if vs else None,
        notes=[*notes, *_limits(subjects)],
        elapsed_s=time.perf_counter() - started,
        versions=versions(),
        class_names=_names(condition, numbers),
        noun="prompt" if isinstance(condition, Prompts) else "class",
        num_groups=len(groups.unique()),
    )
    return write_diagnosis(diagnosis, folder), diagnosis


def examples_of(
    condition: Condition, source: DataSource | None, num_images: int, seed: int
) -> tuple[Tensor | None, ConditionBatch, Tensor]:
    """Images of the data, their conditions, and groups of equally many; None for images that have to be drawn.

    Images with captions are one group.
    """
    if source is not None and isinstance(condition, Prompts):
        images, y = captioned_images(source, num_images, seed)
        return images, y, torch.zeros(len(images), dtype=torch.int64)
    y = balanced_examples(num_images, condition)
    return source and dataset_images(source, y, seed), y, condition.groups(y)


def load_subjects(paths: Sequence[str], device: torch.device, prompts: str | None = None) -> list[Subject]:
    """The models, in evaluation mode.

    Raises: UserError where they or their streams are too many, one is given twice, one cannot be looked into, or they
        do not take the same samples and conditions; FileNotFoundError and ValueError as `load_model`.
    """
    if len(paths) > MAX_MODELS:
        raise UserError(f"{len(paths)} models were given; at most {MAX_MODELS} can be told apart on one page")
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UserError(f"{twice[0]} is given twice")
    subjects = []
    for path, name in zip(paths, short_names(paths), strict=True):
        sampler = load_sampler(path, TeacherConfig(path=path, steps=STAND_IN_STEPS, prompts=prompts))
        sampler.model.to(device).eval()
        subjects.append(Subject(name, path, sampler, _streams(path, sampler.model)))
    if (num := sum(len(subject.streams) for subject in subjects)) > MAX_MODELS:
        raise UserError(f"the models have {num} streams; at most {MAX_MODELS} can be told apart on one page")
    first = subjects[0].sampler.model
    for subject in subjects[1:]:
        model = subject.sampler.model
        if model.sample_shape != first.sample_shape:
            raise UserError(f"{subject.path} makes {model.sample_shape}; {paths[0]} makes {first.sample_shape}")
        if condition_of(model) != condition_of(first):
            raise UserError(f"{subject.path} knows {condition_of(model)}; {paths[0]} knows {condition_of(first)}")
    return subjects


def _streams(path: str, model: Backbone) -> list[str]:
    try:
        with views_of(model) as views:
            return [view.stream for view in views]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def short_names(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with the one before where that says little; whole paths where names are alike."""

    def short(path: str) -> str:
        if path == EMBEDDED:
            return "embedded teacher"
        parts = Path(path).resolve().parts
        return "/".join(parts[-2:] if parts[-1] in ("teacher", "student") else parts[-1:])

    names = [short(path) for path in paths]
    return [name if names.count(name) == 1 else path for name, path in zip(names, paths, strict=True)]


def _names(condition: Condition, numbers: Sequence[int]) -> list[str]:
    """Of the groups, where they have names and are few."""
    names = condition.group_names()
    return [names[number] for number in numbers] if names and len(numbers) <= MOST_NAMES else []


def _stand_in(painter: Subject) -> str:
    return (
        f"No data set that fits was at hand: the images are a stand-in, drawn by {painter.name} itself "
        f"({painter.sampler.description}). A model is more at home on its own samples than on data."
    )


def _limits(subjects: Sequence[Subject]) -> list[str]:
    return [
        f"{s.name} is a student and was trained at its own t only ({s.sampler.description}); "
        "what it does at others was never asked of it."
        for s in subjects
        if s.sampler.role == "student"
    ]
