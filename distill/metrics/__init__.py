"""What becomes of detail: spectra, edges, grain, colour, feature and perceptual distances, with intervals.

`measure` gives the whole table for a set of images; libraries are imported only when used. May import config, assets,
render, files and errors.
"""

from distill.metrics.bootstrap import Interval, bootstrap, bootstrap_mean, share_interval
from distill.metrics.features import EXTRACTORS, EmbeddedExtractor, Extractor, Features, load_extractor
from distill.metrics.frechet import (
    FrechetStatistics,
    frechet_distance,
    frechet_interval,
    frechet_statistics,
    kid,
    precision_recall,
)
from distill.metrics.measures import check_reference, measure
from distill.metrics.perceptual import PerceptualDistance, class_diversity, load_perceptual
from distill.metrics.reference import ReferenceStatistics, extractor_id, reference_from_images
from distill.metrics.registry import (
    MEASURES,
    Measure,
    data_values,
    distance_of,
    half_values,
    measure_of,
    register_measure,
)
from distill.metrics.spectrum import high_frequency_share
from distill.metrics.tables import TABLES, register_table, register_video_table, rows_of

__all__ = [
    "EXTRACTORS",
    "MEASURES",
    "TABLES",
    "EmbeddedExtractor",
    "Extractor",
    "Features",
    "FrechetStatistics",
    "Interval",
    "Measure",
    "PerceptualDistance",
    "ReferenceStatistics",
    "bootstrap",
    "bootstrap_mean",
    "check_reference",
    "class_diversity",
    "data_values",
    "distance_of",
    "extractor_id",
    "frechet_distance",
    "frechet_interval",
    "frechet_statistics",
    "half_values",
    "high_frequency_share",
    "kid",
    "load_extractor",
    "load_perceptual",
    "measure",
    "measure_of",
    "precision_recall",
    "reference_from_images",
    "register_measure",
    "register_table",
    "register_video_table",
    "rows_of",
    "share_interval",
]
