"""Measure a student or a teacher."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from distill.config import EvalConfig
from distill.data import load_dataset
from distill.errors import UserError
from distill.evaluation.drawing import DRAWN, draw
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.evaluation.references import class_balanced, read_images
from distill.files import claimed, write_files
from distill.latents.decoding import decoder_for
from distill.metrics import ReferenceStatistics, reference_from_images
from distill.processes import Processes, default_device, leave_others
from distill.sampling import Sampler, in_precision
from distill.sampling.samplers import teacher_of
from distill.verbs.load import load, vae_of
from distill.verbs.output import claimed_output

NUM_IMAGES = 5000


@dataclass(frozen=True)
class Evaluation:
    """measured: all measures. statistics: the same images as a reference for others. notes: what stood in for what."""

    measured: Measured
    statistics: ReferenceStatistics
    notes: list[str]

    def save(self, folder: Path) -> None:
        """Write measures.json and measures.npz."""
        files = {"measures.npz": self.statistics.to_bytes(), "measures.json": self.measured.to_bytes()}
        write_files(folder, files)


def evaluate(
    model: str | Path | Sampler, config: EvalConfig | None = None, *, output: str | Path | None = None
) -> Evaluation | None:
    """Draw images and measure them; with `output`, a call that was cut off goes on with what it had drawn.

    Args:
        model: what `load` takes, or what it returned.
        config: how many images, which references, which extractor; None for 5000 images and the defaults.
        output: a new folder for measures.json and measures.npz; None saves nothing.

    Returns: None on all processes but the main one.
    """
    config = config or EvalConfig(num_images=NUM_IMAGES)
    with claimed_output(output, begun=DRAWN) as folder:
        return _evaluated(model, config, folder)


def _evaluated(model: str | Path | Sampler, config: EvalConfig, folder: Path | None) -> Evaluation | None:
    sampler = in_precision(model if isinstance(model, Sampler) else load(model), config.mixed_precision)
    config = replace(config, vae=vae_of(config.vae, [sampler.path]))
    teacher_path = teacher_of(sampler.path)
    device, shape = default_device(), sampler.model.sample_shape
    decoder = decoder_for(config.vae, shape, device)

    def made() -> Evaluator:
        evaluator = Evaluator(config, device, shape, teacher_path, decoder)
        evaluator.use_teacher_statistics(teacher_path)
        return evaluator

    evaluator = Processes.all().main_alone(made)
    (drawing,) = draw([(sampler, config.num_images)], config, decoder, folder and folder / DRAWN)
    leave_others()
    if evaluator is None:
        return None
    evaluation = Evaluation(evaluator.measure(drawing), evaluator.statistics(drawing), evaluator.notes)
    if folder is not None:
        evaluation.save(folder)
        shutil.rmtree(folder / DRAWN)
    return evaluation


def evaluate_images(
    images: str | Path, config: EvalConfig | None = None, *, output: str | Path | None = None
) -> Evaluation | None:
    """Measure pictures that are there already, whoever made them.

    Args:
        images: a folder, or a .npz file such as `sample_npz` writes.
        config: what to compare with: `data` or `reference`. At most `num_images` are measured, an equal number
            of each class.
        output: as in `evaluate`.

    Returns: None on all processes but the main one.
    Raises: UserError if there is nothing to compare with; ValueError, which names the file, for a damaged picture.
    """
    if not Processes.all().is_main:
        return None
    config = config or EvalConfig(num_images=NUM_IMAGES)
    with nullcontext() if output is None else claimed(output) as folder:
        return _images_evaluated(images, config, folder)


def _images_evaluated(images: str | Path, config: EvalConfig, folder: Path | None) -> Evaluation:
    if config.data is None and config.reference in (None, "auto"):
        raise UserError("pictures are measured against others: give --data, a folder or .npz file, or --reference")
    data = load_dataset("pictures", images)
    evaluator = Evaluator(config, default_device(), tuple(data.sample_shape))
    evaluator.use_teacher_statistics(None)
    pixels, labels = read_images(data, class_balanced(data.labels, config.num_images, seed=0))
    values = evaluator.measures_of(pixels, labels)
    measured = Measured(str(images), "pictures", len(pixels), 0, 0, 0.0, values)
    statistics = reference_from_images(
        pixels, labels, evaluator.extractor, str(images), perceptual=evaluator.perceptual
    )
    evaluation = Evaluation(measured, statistics, evaluator.notes)
    if folder is not None:
        evaluation.save(folder)
    return evaluation
