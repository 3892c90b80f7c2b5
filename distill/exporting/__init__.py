"""A model as others run it: a folder of diffusers, or a sampler as one graph of ONNX or torch.

One exporter for each family of models and format, by name. May import evaluation, sampling, models, latents, metrics,
report, conditions, config, files, errors and dar.
"""

from distill.exporting import sit_diffusers, sit_onnx, sit_torch, stock_diffusers
from distill.exporting.base import EXPORTERS, PACKAGES, Options, Source, exporter_of, register
from distill.exporting.hub import push_folder

__all__ = [
    "EXPORTERS",
    "PACKAGES",
    "Options",
    "Source",
    "exporter_of",
    "push_folder",
    "register",
    "sit_diffusers",
    "sit_onnx",
    "sit_torch",
    "stock_diffusers",
]
