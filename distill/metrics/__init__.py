"""What becomes of detail: spectra, edges, feature distances and perceptual distances, with intervals.

`measure` gives the whole table for a set of images; torch-fidelity and lpips are imported only when used.
May import config, assets, files and errors.
"""

from distill.metrics.bootstrap import Interval, bootstrap, bootstrap_mean, share_interval
from distill.metrics.edges import (
    edge_density,
    edge_share,
    gradient_distance,
    gradient_histogram,
    gradient_magnitude,
)
from distill.metrics.features import EXTRACTORS, EmbeddedExtractor, Extractor, Features, load_extractor
from distill.metrics.frechet import (
    FrechetStatistics,
    frechet_distance,
    frechet_interval,
    frechet_statistics,
    kid,
    precision_recall,
)
from distill.metrics.perceptual import PerceptualDistance, class_diversity, load_perceptual
from distill.metrics.reference import ReferenceStatistics, extractor_id, reference_from_images
from distill.metrics.spectrum import (
    axis_power,
    band_power,
    high_frequency_ratio,
    patch_peak,
    power_spectrum,
    radial_spectrum,
    ring_power,
    spectral_difference,
    spectral_distance,
)
from distill.metrics.table import MEASURES, Measure, check_reference, data_values, measure, register_measure

__all__ = [
    "EXTRACTORS",
    "MEASURES",
    "EmbeddedExtractor",
    "Extractor",
    "Features",
    "FrechetStatistics",
    "Interval",
    "Measure",
    "PerceptualDistance",
    "ReferenceStatistics",
    "axis_power",
    "band_power",
    "bootstrap",
    "bootstrap_mean",
    "check_reference",
    "class_diversity",
    "data_values",
    "edge_density",
    "edge_share",
    "extractor_id",
    "frechet_distance",
    "frechet_interval",
    "frechet_statistics",
    "gradient_distance",
    "gradient_histogram",
    "gradient_magnitude",
    "high_frequency_ratio",
    "kid",
    "load_extractor",
    "load_perceptual",
    "measure",
    "patch_peak",
    "power_spectrum",
    "precision_recall",
    "radial_spectrum",
    "reference_from_images",
    "register_measure",
    "ring_power",
    "share_interval",
    "spectral_difference",
    "spectral_distance",
]
