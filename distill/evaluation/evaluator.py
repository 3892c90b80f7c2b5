"""Draws and measures samplers. The results are stored per sampler as one JSON file and one .npz file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.assets import EMBEDDED, resolve
from distill.config import EvalConfig
from distill.errors import UserError
from distill.files import write_text
from distill.latents.decoding import load_decoder
from distill.metrics import (
    Interval,
    ReferenceStatistics,
    check_reference,
    load_extractor,
    load_perceptual,
    measure,
    reference_from_images,
)
from distill.models.backbone import Backbone, patch_size_of
from distill.progress import progress_bar
from distill.render import clamp_images
from distill.sampling import Sampler, draw_images


@dataclass(frozen=True)
class Measured:
    """Measurements of one sampler; `measures` has the names of `distill.metrics.MEASURES`."""

    name: str
    description: str
    num_images: int
    num_steps: int
    evaluations: int
    images_per_second: float
    measures: dict[str, Interval]

    def save(self, path: Path) -> None:
        measures = {name: value.to_json() for name, value in self.measures.items()}
        write_text(path, json.dumps({**asdict(self), "measures": measures}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Raises: UserError if the file is damaged."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            values["measures"] = {name: Interval.from_json(entry) for name, entry in values["measures"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of measured values: {error}") from error


class Evaluator:
    """The decoder, the feature extractor, the perceptual distance and the references that a configuration names.

    `notes` are sentences for the report; they name the stand-ins that replace missing weights.
    """

    def __init__(self, config: EvalConfig, device: torch.device) -> None:
        self.config = config
        self.notes: list[str] = []
        self.decoder = load_decoder(config.vae, device)
        if self.decoder.note:
            self.notes.append(f"Images are {self.decoder.note}, and measured as such.")
        try:
            self.extractor = load_extractor(config.extractor, config.extractor_path, device=device)
        except FileNotFoundError as error:
            self.extractor = load_extractor(EMBEDDED, device=device)
            self.notes.append(f"{error}. Stand-in for features: the embedded Fashion-MNIST classifier.")
        if self.extractor.name == EMBEDDED:
            own = config.extractor_path if config.extractor == EMBEDDED else None
            classifier = f"the classifier in {own}" if own else "a small Fashion-MNIST classifier"
            self.notes.append(
                "Fréchet distance, KID, precision, recall and class agreement use "
                f"{self.extractor.feature_dim} features of {classifier}; they compare with each other, not with "
                "Inception figures of papers."
            )
        self.data = ReferenceStatistics.load(resolve(config.reference, "data.npz"))
        self.perceptual = load_perceptual(self.data.image_shape, self.extractor, device=device)
        self._note_perceptual()
        self.data = self._comparable(self.data)
        self.teacher: ReferenceStatistics | None = None
        self.measured_teacher: Measured | None = None

    def _note_perceptual(self) -> None:
        if self.perceptual is None:
            self.notes.append(
                "There is no LPIPS figure: AlexNet's weights are not on this machine, and the stand-in does not read "
                f"images {list(self.data.image_shape)}."
            )
        elif "stand-in" in self.perceptual.name:
            self.notes.append(
                f"AlexNet weights for LPIPS are not on this machine; every LPIPS figure is the {self.perceptual.name}."
            )

    def _comparable(self, reference: ReferenceStatistics) -> ReferenceStatistics:
        """The reference; without its diversity if another perceptual distance than this evaluator's measured it."""
        if self._is_comparable(reference) or math.isnan(reference.diversity):
            return reference
        if self.perceptual is not None:
            self.notes.append(
                f"The diversity of {reference.source} is left out: it was measured with {reference.perceptual}, that "
                f"of other images with {self.perceptual.name}."
            )
        return replace(reference, diversity=math.nan)

    def _is_comparable(self, reference: ReferenceStatistics) -> bool:
        return self.perceptual is not None and reference.perceptual == self.perceptual.name

    def check(self, model: Backbone) -> None:
        """Raise ValueError if the data's statistics do not match the samples of `model`; call before any compute."""
        self._check(self.data, model)

    def _check(self, reference: ReferenceStatistics, model: Backbone) -> None:
        check_reference(reference, self.extractor, self.decoder.image_shape(model.sample_shape))

    def describe(self, sampler: Sampler) -> str:
        """Everything that defines the images except the weights: the sampler and the decoder of its samples."""
        return ", ".join(part for part in (sampler.description, self.decoder.note) if part)

    def patch_size(self, model: Backbone) -> int:
        """Patch size of the model in pixels of the decoded images."""
        return patch_size_of(model) * self.decoder.factor

    def use_teacher_reference(self, sampler: Sampler, teacher_path: str) -> None:
        """Use the stored statistics and measures of the teacher's reference sampler if they match `sampler`.

        They do not match if the teacher, its steps or its guidance differ. Call this before any compute, like `check`.

        Raises: as `use_teacher_statistics`; UserError if the stored measures are damaged.
        """
        reference = self.config.reference_for(teacher_path)
        if reference is None:
            return
        path = resolve(reference, "teacher.npz")
        measured = Measured.load(path.with_suffix(".json"))
        if measured.description != self.describe(sampler):
            self.notes.append(
                f"The stored statistics of the teacher are of {measured.description}; this run's teacher takes "
                f"{self.describe(sampler)} and was drawn anew, {self.config.num_images} images."
            )
            return
        self.use_teacher_statistics(sampler.model)
        if self.teacher is not None and not self._is_comparable(self.teacher):
            kept = {name: value for name, value in measured.measures.items() if not name.startswith("lpips_")}
            measured = replace(measured, measures=kept)
        self.measured_teacher = measured
        if measured.num_images != self.config.num_images:
            self.notes.append(
                f"The figures of {sampler.name} are stored ones, over {measured.num_images} images; the others are "
                f"over {self.config.num_images}. A Fréchet distance and recall fall as images are added."
            )

    def use_teacher_statistics(self, model: Backbone) -> None:
        """Use the stored statistics of the teacher, for distances of the samples of `model`.

        Raises: FileNotFoundError; ValueError if they are damaged or do not match the samples of `model`.
        """
        if self.config.teacher_reference is not None:
            loaded = ReferenceStatistics.load(resolve(self.config.teacher_reference, "teacher.npz"))
            try:
                self._check(loaded, model)
            except ValueError as error:
                raise UserError(f"teacher_reference = {self.config.teacher_reference}: {error}") from error
            self.teacher = self._comparable(loaded)

    def draw(self, samplers: Sequence[Sampler], num_images: int) -> list[tuple[Tensor, float]]:
        """Images in [-1, 1] and images per second of each sampler, from the same noise and conditions."""
        drawn = []
        with progress_bar() as progress:
            for sampler in samplers:
                bar = progress.add_task(f"drawing: {sampler.name}", total=num_images)
                images, rate = draw_images(
                    sampler,
                    sampler.condition.balanced(num_images),
                    seed=self.config.seed,
                    batch_size=self.config.batch_size,
                    decoder=self.decoder,
                    advance=lambda n, bar=bar: progress.advance(bar, n),
                )
                drawn.append((clamp_images(images), rate))
        return drawn

    def measure(self, sampler: Sampler, images: Tensor, rate: float, paired_to: Tensor | None = None) -> Measured:
        """All measures of drawn images; `paired_to` are the teacher's images from the same noise and labels."""
        condition = sampler.condition
        labels = condition.groups(condition.balanced(len(images)))
        values = measure(
            images,
            labels,
            data=self.data,
            teacher=self.teacher,
            extractor=self.extractor,
            lpips=self.perceptual,
            patch_size=self.patch_size(sampler.model),
            paired_to=paired_to,
            num_bootstrap=self.config.bootstrap,
        )
        return Measured(
            sampler.name,
            self.describe(sampler),
            len(images),
            sampler.num_steps,
            sampler.evaluations,
            rate,
            values,
        )

    def statistics(self, sampler: Sampler, images: Tensor, source: str) -> ReferenceStatistics:
        """Statistics of drawn images, as a reference for other samplers."""
        condition = sampler.condition
        labels = condition.groups(condition.balanced(len(images)))
        return reference_from_images(images, labels, self.extractor, source, perceptual=self.perceptual)
