"""`dar-distill sample`, `evaluate` and `compare`: what is done with finished models."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from distill.config import EvalConfig, TeacherConfig
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.evaluator import Evaluator
from distill.files import new_folder, write_folder
from distill.latents.decoding import load_decoder
from distill.metrics import MEASURES
from distill.render import save_grid, save_image
from distill.report import check_columns, write_report
from distill.sampling.samplers import Sampler, configured_vae, draw_images, load_sampler, read_class_names
from distill.training.devices import default_device

GRID_ROWS = 8


def _teacher_config(args: Namespace, path: str) -> TeacherConfig:
    return TeacherConfig(path=path, cfg_scale=args.cfg_scale, cfg_channels=args.cfg_channels, steps=args.steps)


def _load(args: Namespace, path: str, device: torch.device) -> Sampler:
    sampler = load_sampler(path, _teacher_config(args, path), args.solver)
    sampler.model.to(device).eval()
    return sampler


def _vae(args: Namespace, paths: Sequence[str]) -> str | None:
    """--vae, or else what the configurations of the runs say."""
    if args.vae:
        return args.vae
    found = {vae: path for path in paths if (vae := configured_vae(path))}
    if len(found) > 1:
        named = ", ".join(f"{vae} ({path})" for vae, path in found.items())
        raise UserError(f"the runs name several autoencoders, {named}: choose one with --vae")
    return next(iter(found), None)


def _evaluator(args: Namespace, sampler: Sampler, vae: str | None, device: torch.device) -> Evaluator:
    config = EvalConfig(
        num_images=args.num_images,
        batch_size=args.batch_size,
        extractor=args.extractor,
        reference=args.reference,
        teacher_reference=None if args.teacher_reference == "none" else args.teacher_reference,
        vae=vae,
        seed=args.seed,
    )
    evaluator = Evaluator(config, device)
    evaluator.check(sampler.model)
    return evaluator


def sample(args: Namespace) -> None:
    """One PNG per image, and a grid with one column per class."""
    if args.num_images < 1:
        raise UserError(f"--num-images must be at least 1; got {args.num_images}")
    folder = new_folder(args.output)
    device = default_device()
    sampler = _load(args, args.model, device)
    num_classes = sampler.model.null_label
    classes = args.classes or list(range(num_classes))
    for label in classes:
        if not 0 <= label < num_classes:
            raise UserError(f"--classes: class {label} is out of range; the model has 0 to {num_classes - 1}")
    labels = torch.tensor([classes[i % len(classes)] for i in range(args.num_images)])
    decoder = load_decoder(_vae(args, [args.model]), device)
    decoder.image_shape(sampler.model.sample_shape)
    images, rate = draw_images(sampler, labels, seed=args.seed, batch_size=args.batch_size, decoder=decoder)

    def fill(path: Path) -> None:
        for i, image in enumerate(images):
            save_image(image, path / f"{i:06d}_class{int(labels[i])}.png")
        rows = min(GRID_ROWS, len(images) // len(classes))
        if rows:
            # Drawn round robin over the classes; the grid wants all of one class together.
            by_class = images[: rows * len(classes)].view(rows, len(classes), *images.shape[1:]).transpose(0, 1)
            save_grid(by_class.flatten(0, 1), rows, path / "grid.png")

    write_folder(folder, fill)
    note = f", {decoder.note}" if decoder.note else ""
    print(f"{len(images)} images by {sampler.name} ({sampler.description}{note}), {rate:.1f} per second: {folder}")


def evaluate(args: Namespace) -> None:
    """measures.json and measures.npz: all measures, and the same images as a reference for others."""
    folder = new_folder(args.output)
    device = default_device()
    sampler = _load(args, args.model, device)
    evaluator = _evaluator(args, sampler, _vae(args, [args.model]), device)
    evaluator.use_teacher_statistics(sampler.model)
    ((images, rate),) = evaluator.draw([sampler], args.num_images)
    measured = evaluator.measure(sampler, images, rate)
    statistics = evaluator.statistics(sampler, images, measured.description)
    measured.save(folder / "measures.json")
    statistics.save(folder / "measures.npz")
    print(f"{sampler.name} ({measured.description}), {len(images)} images, {rate:.1f} per second")
    for name, value in measured.measures.items():
        title, unit = MEASURES[name].title, MEASURES[name].unit
        limits = "" if math.isnan(value.low) else f"[{value.low:.4f}, {value.high:.4f}] "
        print(f"  {title:<40} {value.value:10.4f}  {limits}{unit}")
    for note in evaluator.notes:
        print(f"note: {note}")


def compare(args: Namespace) -> None:
    """One page for several students of one teacher."""
    folder = new_folder(args.output)
    device = default_device()
    settings = _teacher_config(args, args.teacher)
    slow = _load(args, args.teacher, device)
    if slow.role != "teacher":
        raise UserError(f"--teacher {args.teacher} is a student; give the model that it was distilled from")
    students = [_load(args, path, device) for path in args.runs]
    names = [Path(path).name for path in args.runs]
    for sampler, name, path in zip(students, names, args.runs, strict=True):
        if sampler.role != "student":
            raise UserError(
                f"{path} is no student; only students are compared, with the one model that --teacher names"
            )
        if sampler.model.sample_shape != slow.model.sample_shape:
            raise UserError(f"{path} makes {sampler.model.sample_shape}; the teacher {slow.model.sample_shape}")
        if sampler.model.null_label != slow.model.null_label:
            raise UserError(f"{path} knows {sampler.model.null_label} classes; the teacher {slow.model.null_label}")
        sampler.name = f"{name if names.count(name) == 1 else path}, {sampler.num_steps} steps"
    others = [*results.teachers_at((s.num_steps for s in students), slow, settings, args.solver), *students]
    check_columns([(sampler.name, sampler.role) for sampler in [slow, *others]])
    evaluator = _evaluator(args, slow, _vae(args, [*args.runs, args.teacher]), device)
    evaluator.use_teacher_reference(slow, args.teacher)
    entries = results.measured_entries(evaluator, slow, others, GRID_ROWS)
    routing = [results.routing_of("teacher", slow.model)]
    routing += [results.routing_of(student.name, student.model) for student in students]
    report = results.page(
        "Students of one teacher",
        f"{len(students)} students and {args.teacher}, the same noise and labels for all",
        entries,
        evaluator,
        routing=routing,
        class_names=read_class_names(args.teacher),
        seeds={"evaluate": args.seed},
    )
    print(f"report: {write_report(report, folder)}")
