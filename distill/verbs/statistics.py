"""Data set to a file of its statistics, for `evaluate.reference`."""

from __future__ import annotations

from pathlib import Path

from distill.config import DataConfig
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.evaluation.references import MAX_REFERENCE, statistics_of
from distill.latents.decoding import decoder_for
from distill.metrics import ReferenceStatistics, load_extractor, load_perceptual
from distill.processes import default_device
from distill.progress import logger


def statistics(
    data: DataConfig,
    *,
    split: str = "train",
    num_images: int = MAX_REFERENCE,
    extractor: str = "inception",
    extractor_path: str | None = None,
    source: str | None = None,
    output: str | Path | None = None,
    offline: bool = False,
) -> ReferenceStatistics:
    """Measure a data set once; features and diversity are left out, and named, if weights are missing.

    Args:
        data: the data set; its `vae` decodes latents. num_images: at most, an equal number of each class.
        extractor: `inception`, or `embedded` for images like the shipped ones. source: a name, to show to users.
        output: a .npz file. offline: download nothing.

    Raises: as the loaders of data sets; UserError if the extractor does not read such images.
    """
    device = default_device()
    read = configured_dataset(data, split)
    sample_shape = tuple(read.sample_shape)
    decoder = decoder_for(data.vae, sample_shape, device)
    shape = decoder.image_shape(sample_shape)
    found, perceptual = None, None
    try:
        found = load_extractor(extractor, extractor_path, device=device, offline=offline)
        if not found.reads(shape):
            raise UserError(f"--extractor {extractor} does not read images {list(shape)}; use inception")
    except FileNotFoundError as error:
        logger.warning(f"features are left out: {error}")
    try:
        perceptual = load_perceptual(shape, found, device=device, offline=offline)
    except FileNotFoundError as error:
        logger.warning(f"diversity is left out: {error}")
    made = statistics_of(read, source or data.path, decoder, sample_shape, found, perceptual, num_images=num_images)
    if output is not None:
        made.save(output)
    return made
