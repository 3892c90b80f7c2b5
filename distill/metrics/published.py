"""Reference statistics of others: ADM's evaluation suite, pytorch-fid and torch-fidelity.

    .npz with mu, sigma, and in ADM's files mu_s, sigma_s (sFID's) and arr_0, images (N, H, W, C) in uint8
        (github.com/openai/guided-diffusion)
    .npz with mu, sigma alone (pytorch-fid)
    .pt  with mu, sigma (torch-fidelity's cache)

mu [2048] and sigma [2048, 2048] are of Inception's features.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dar.checkpoints.pickles import read_pickle
from distill.errors import reading
from distill.files.bounded import npz_arrays, npz_names
from distill.metrics.features import Extractor
from distill.metrics.frechet import check_moments
from distill.metrics.perceptual import PerceptualDistance
from distill.metrics.reference import ReferenceStatistics, extractor_id, reference_from_images

MAX_IMAGES = 2000  # of arr_0, for spectra and edges; in float32 10,000 of 256 x 256 would take 8 GB
INCEPTION_DIM = 2048


def is_published(path: Path) -> bool:
    """Whether a file holds statistics of others."""
    if path.suffix == ".pt":
        return True
    try:
        names = set(npz_names(path))
    except (OSError, ValueError, zipfile.BadZipFile):  # `ReferenceStatistics.load` says what is wrong
        return False
    return {"mu", "sigma"} <= names and "format" not in names


def published_reference(
    path: Path, extractor: Extractor | None, perceptual: PerceptualDistance | None
) -> ReferenceStatistics:
    """The file's mean and covariance, where the extractor is Inception; spectra and edges of its images.

    Raises: ValueError where the file is damaged.
    """
    with reading(path, "holds no mu and sigma of features"):
        entries: dict[str, Any] = _read(path)
        mu, sigma = (np.asarray(entries[name], dtype=np.float64) for name in ("mu", "sigma"))
    if mu.shape != (INCEPTION_DIM,) or sigma.shape != (INCEPTION_DIM, INCEPTION_DIM):
        raise ValueError(f"{path}: mu and sigma have shapes {mu.shape}, {sigma.shape}; Inception has {INCEPTION_DIM}")
    check_moments(f"{path}", mu, sigma)
    comparable = extractor if extractor is not None and extractor.name == "inception" else None
    moments = _spatial(path, entries) if comparable and {"mu_s", "sigma_s"} <= entries.keys() else {}
    pixels = entries.get("arr_0")
    if pixels is None:
        return replace(_without_images(path.name, mu, sigma, comparable), moments=moments)
    images = torch.from_numpy(np.ascontiguousarray(pixels[:MAX_IMAGES])).permute(0, 3, 1, 2).float() / 127.5 - 1
    statistics = reference_from_images(
        images, torch.arange(len(images)), comparable, f"{path.name}, {len(pixels)} images", perceptual=perceptual
    )
    return replace(statistics, mu=mu, sigma=sigma, moments=statistics.moments | moments) if comparable else statistics


def _spatial(path: Path, entries: dict[str, Any]) -> dict[str, np.ndarray]:
    with reading(path, "holds no mu_s and sigma_s of features"):
        mu, sigma = (np.asarray(entries[name], dtype=np.float64) for name in ("mu_s", "sigma_s"))
    check_moments(f"{path}: of sFID", mu, sigma)
    return {"spatial_mu": mu, "spatial_sigma": sigma}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".pt":
        return read_pickle(path)
    return npz_arrays(path, ("mu", "sigma", "mu_s", "sigma_s", "arr_0"))


def _without_images(source: str, mu: np.ndarray, sigma: np.ndarray, extractor: Extractor | None) -> ReferenceStatistics:
    nothing = np.zeros(0)
    return ReferenceStatistics(
        source=source,
        extractor=extractor_id(extractor) if extractor else "",
        num_images=0,
        image_shape=(),
        labels=nothing,
        features=np.zeros((0, INCEPTION_DIM if extractor else 0), np.float16),
        mu=mu if extractor else nothing,
        sigma=sigma if extractor else np.zeros((0, 0)),
        class_agreement=float("nan"),
        tables={},
        moments={},
        diversity=float("nan"),
        perceptual="",
    )
