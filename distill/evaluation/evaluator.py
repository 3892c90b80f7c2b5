"""Drawing and measuring samplers; what comes out is stored as one JSON beside one .npz per sampler."""

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
    """What was measured of one sampler; `measures` by the names of `distill.metrics.MEASURES`."""

    name: str
    description: str
    num_images: int
    num_steps: int
    evaluations: int
    images_per_second: float
    measures: dict[str, Interval]

    def save(self, path: Path) -> None:
        measures = {name: value.plain() for name, value in self.measures.items()}
        write_text(path, json.dumps({**asdict(self), "measures": measures}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Raises: UserError where the file is damaged."""
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            values["measures"] = {name: Interval.of_plain(entry) for name, entry in values["measures"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no file of measured values: {error}") from error


class Evaluator:
    """The decoder, the extractor, the perceptual distance and the references that a configuration asks for.

    `notes` says, by name, where a stand-in takes the place of weights that are missing.
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
        """Without its diversity where another perceptual distance than this evaluator's gave it."""
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
        """Raise ValueError where the data's statistics are not of what `model` makes: before any compute."""
        self._check(self.data, model)

    def _check(self, reference: ReferenceStatistics, model: Backbone) -> None:
        check_reference(reference, self.extractor, self.decoder.image_shape(model.sample_shape))

    def describe(self, sampler: Sampler) -> str:
        """What defines the images beside the weights: the sampler, and what decodes its samples."""
        return ", ".join(part for part in (sampler.description, self.decoder.note) if part)

    def patch_size(self, model: Backbone) -> int:
        """Of the patches as they lie in the images."""
        return patch_size_of(model) * self.decoder.factor

    def use_teacher_reference(self, sampler: Sampler, teacher_path: str) -> None:
        """Take the stored statistics and measures of the teacher's reference sampler where they are its own.

        They are not where the teacher, its steps or its guidance differ from what they were drawn with. To be called
        before any compute, as `check`. Raises: as `use_teacher_statistics`; UserError for damaged measures.
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
        """Take the stored statistics of the teacher as they are, for distances of what `model` makes.

        Raises: FileNotFoundError; ValueError where they are damaged or not of what `model` makes.
        """
        if self.config.teacher_reference is not None:
            loaded = ReferenceStatistics.load(resolve(self.config.teacher_reference, "teacher.npz"))
            try:
                self._check(loaded, model)
            except ValueError as error:
                raise UserError(f"teacher_reference = {self.config.teacher_reference}: {error}") from error
            self.teacher = self._comparable(loaded)

    def draw(self, samplers: Sequence[Sampler], num_images: int) -> list[tuple[Tensor, float]]:
        """Images in [-1, 1] and rate of each sampler, from the same noise and conditions, with a progress bar."""
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
        """All measures of drawn images; `paired_to` are the teacher's from the same noise and labels."""
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
        """The same images as a reference for others."""
        condition = sampler.condition
        labels = condition.groups(condition.balanced(len(images)))
        return reference_from_images(images, labels, self.extractor, source, perceptual=self.perceptual)
