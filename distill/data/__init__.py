"""Data sets by name. To add one: a file here, `@register("name")` on its loader, a config and a test.

May import latents, conditions, config, files, processes, progress, seeds and errors.
"""

from distill.data.base import DATASETS, Dataset, load_dataset, register
from distill.data.crops import Crops
from distill.data.idx import read_idx
from distill.data.images import ImageFolderDataset
from distill.data.latents import LatentDataset
from distill.data.npz import NpzDataset
from distill.data.pictures import load_pictures

__all__ = [
    "DATASETS",
    "Crops",
    "Dataset",
    "ImageFolderDataset",
    "LatentDataset",
    "NpzDataset",
    "load_dataset",
    "load_pictures",
    "read_idx",
    "register",
]
