"""Measures the images of samplers. The results are stored per sampler as one JSON file and one .npz file."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from distill.assets import EMBEDDED, resolve
from distill.config import EvalConfig
from distill.errors import UserError
from distill.evaluation.drawing import Drawing
from distill.evaluation.measured import Measured
from distill.evaluation.references import data_set_of, extractor_name, load_reference, reference_file, statistics_of
from distill.latents.decoding import Decoder, decoder_for
from distill.metrics import (
    EmbeddedExtractor,
    Extractor,
    Interval,
    PerceptualDistance,
    ReferenceStatistics,
    check_reference,
    data_values,
    load_extractor,
    load_perceptual,
    measure,
    reference_from_images,
)
from distill.render import frame_shape
from distill.sampling import Sampler, describe

FEATURE_MEASURES = "Fréchet distance, KID, precision and recall"

WATCHED = 500  # images of a data set that a training is watched by


class Evaluator:
    """The decoder, the feature extractor, the perceptual distance and the references that a configuration names.

    `notes` are sentences for the report; they name the stand-ins that replace missing weights.
    """

    def __init__(
        self,
        config: EvalConfig,
        device: torch.device,
        sample_shape: tuple[int, ...],
        teacher_path: str | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        """
        Args:
            sample_shape: (c, h, w) of the models' samples, or (c, f, h, w).
            teacher_path: the teacher of the samplers, as a configuration names it; None if it is not known.
            decoder: that of `config.vae`, where it is loaded already.

        Raises: UserError or ValueError if a reference or a file of weights is damaged or does not fit the samples.
        """
        if config.num_images == 0:
            raise UserError("num_images is 0: nothing is drawn and measured; give at least 4")
        self.config = config
        self.device = device
        self.notes: list[str] = []
        self.decoder = decoder or decoder_for(config.vae, sample_shape, device)
        shape = self.decoder.image_shape(sample_shape)
        self.image_shape = frame_shape(shape)
        if self.decoder.note:
            self.notes.append(f"Images are {self.decoder.note}, and measured as such.")
        if shape != self.image_shape:
            self.notes.append(
                f"Samples are videos of {shape[1]} frames: a measure of pictures is the mean over the frames of each, "
                "and where whole sets are compared a video counts as one of its frames, by lot."
            )
        file = reference_file(config, teacher_path)
        self.extractor = self._load_extractor(extractor_name(config, file))
        self.perceptual = self._load_perceptual()
        self._sample_shape = sample_shape
        self._data_set = config.data and data_set_of(config.data, self.decoder, sample_shape)
        self._stored = None if file is None else self._usable(load_reference(file, self.extractor, self.perceptual))
        if self._data_set is None and self._stored is None:
            self.notes.append(
                "No images of data were given (evaluate.data, a data set, or evaluate.reference, its statistics): the "
                "teacher's own samples are the yardstick, and nothing is said about the distance to data."
            )
        self.teacher: ReferenceStatistics | None = None
        self.measured_teacher: Measured | None = None

    @cached_property
    def data(self) -> ReferenceStatistics | None:
        """Statistics of the data. Those of a data set are made when they are first asked for: it takes minutes, in
        which other processes would wait.
        """
        if self._data_set is None:
            return self._stored
        assert self.config.data is not None
        return statistics_of(
            self._data_set,
            self.config.data.path,
            self.decoder,
            self._sample_shape,
            self.extractor,
            self.perceptual,
        )

    def values_to_watch(self) -> dict[str, float]:
        """The data's values by measure, of those that need no weights; of a data set over `WATCHED` images of it."""
        reference = self._stored
        if reference is None and self._data_set is not None and self.config.data is not None:
            reference = statistics_of(
                self._data_set, self.config.data.path, self.decoder, self._sample_shape, None, None, num_images=WATCHED
            )
        return {} if reference is None else data_values(reference)

    def _usable(self, reference: ReferenceStatistics) -> ReferenceStatistics:
        self._check(reference)
        return self._comparable(reference if self.extractor else reference.without_features())

    def _load_extractor(self, name: str) -> Extractor | None:
        path = self.config.extractor_path
        try:
            extractor = load_extractor(name, path, device=self.device, offline=self.config.offline)
        except FileNotFoundError as error:
            self.notes.append(f"{FEATURE_MEASURES} are left out: {error}.")
            return None
        if not extractor.reads(self.image_shape):
            raise UserError(
                f"the extractor {name!r} does not read images {list(self.image_shape)}: give evaluate.extractor = "
                "inception and a reference of such images"
            )
        if extractor.name == "dinov2":
            self.notes.append(
                f"{FEATURE_MEASURES} are of DINOv2's features: the Fréchet distance is FD-DINOv2, no FID."
            )
        if isinstance(extractor, EmbeddedExtractor):
            classifier = f"the classifier in {path}" if path else "a small Fashion-MNIST classifier"
            self.notes.append(
                f"{FEATURE_MEASURES} and class agreement use {extractor.feature_dim} features of {classifier}; they "
                "compare with each other, not with Inception figures of papers."
            )
        return extractor

    def _load_perceptual(self) -> PerceptualDistance | None:
        try:
            found = load_perceptual(self.image_shape, self.extractor, device=self.device, offline=self.config.offline)
        except FileNotFoundError as error:
            self.notes.append(f"LPIPS is left out: {error}.")
            return None
        if "stand-in" in found.name:
            self.notes.append(
                f"AlexNet's weights for LPIPS are not in torch hub's cache; every LPIPS figure is the {found.name}."
            )
        return found

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

    def _check(self, reference: ReferenceStatistics) -> None:
        check_reference(reference, self.extractor, self.image_shape)

    def use_teacher_reference(self, sampler: Sampler, teacher_path: str) -> None:
        """Use the stored statistics and measures of the teacher's reference sampler if they match `sampler`.

        They do not match if the teacher, its steps or its guidance differ, or if there is no extractor to compare with.
        Call this before any compute.

        Raises: as `use_teacher_statistics`; UserError if the stored measures are damaged.
        """
        reference = self.config.reference_for(teacher_path)
        if reference is None or self.extractor is None:
            return
        path = resolve(reference, "teacher.npz")
        measured = Measured.load(path.with_suffix(".json"))
        if measured.description != describe(sampler, self.decoder):
            self.notes.append(
                f"The stored statistics of the teacher are of {measured.description}; this run's teacher takes "
                f"{describe(sampler, self.decoder)} and was drawn anew, {self.config.num_images} images."
            )
            return
        self.use_teacher_statistics(teacher_path)
        if self.teacher is not None and not self._is_comparable(self.teacher):
            kept = {name: value for name, value in measured.measures.items() if not name.startswith("lpips_")}
            measured = replace(measured, measures=kept)
        self.measured_teacher = measured
        if measured.num_images != self.config.num_images:
            self.notes.append(
                f"The figures of {sampler.name} are stored ones, over {measured.num_images} images; the others are "
                f"over {self.config.num_images}. A Fréchet distance and recall fall as images are added."
            )

    def use_teacher_statistics(self, teacher_path: str | None) -> None:
        """Use the stored statistics of the teacher if they are of the teacher at `teacher_path`.

        Raises: FileNotFoundError; ValueError if they are damaged or not of such images.
        """
        reference = self.config.reference_for(teacher_path)
        if reference is None:
            return
        loaded = ReferenceStatistics.load(resolve(reference, "teacher.npz"))
        try:
            self._check(loaded)
        except ValueError as error:
            raise UserError(f"evaluate.teacher_reference = {reference}: {error}") from error
        self.teacher = self._comparable(loaded if self.extractor else loaded.without_features())
        if reference != EMBEDDED:
            self.notes.append(f"The teacher's figures are of {loaded.source} ({reference}).")

    def measure(self, drawing: Drawing, paired_to: Tensor | None = None) -> Measured:
        """All measures of drawn images; `paired_to` are the teacher's images from the same noise and labels."""
        sampler, images = drawing.sampler, drawing.images
        values = self.measures_of(images, drawing.labels, paired_to)
        return Measured(
            sampler.name,
            describe(sampler, self.decoder),
            len(images),
            sampler.num_steps,
            sampler.evaluations,
            drawing.images_per_second,
            values,
        )

    def measures_of(self, images: Tensor, labels: Tensor, paired_to: Tensor | None = None) -> dict[str, Interval]:
        """All measures of images (N, C, H, W) or (N, C, F, H, W) with labels (N), as `distill.metrics.measure`."""
        return measure(
            images,
            labels,
            data=self.data,
            teacher=self.teacher,
            extractor=self.extractor,
            lpips=self.perceptual,
            paired_to=paired_to,
            num_bootstrap=self.config.bootstrap,
        )

    def statistics(self, drawing: Drawing, source: str = "") -> ReferenceStatistics:
        """Statistics of drawn images, as a reference for other samplers; `source` says of what, in other words."""
        source = source or describe(drawing.sampler, self.decoder)
        return reference_from_images(drawing.images, drawing.labels, self.extractor, source, perceptual=self.perceptual)
