"""Statistics of a reference set (real data, or a teacher's images) that the measures need, in one small .npz file."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import reading
from distill.files import write_bytes
from distill.files.bounded import npz_arrays
from distill.metrics.features import Extractor, Features, patch_features
from distill.metrics.frechet import MIN_IMAGES, FrechetStatistics, check_moments, frechet_statistics
from distill.metrics.images import check_samples, stills
from distill.metrics.perceptual import PerceptualDistance, class_diversity
from distill.metrics.tables import TABLES, VIDEO_TABLES, rows_of
from distill.render import frame_shape

FORMAT = 2
KINDS: dict[str, Callable[[Any], Any]] = {  # of fields that are no arrays
    **dict.fromkeys(("source", "extractor", "perceptual"), str),
    **dict.fromkeys(("class_agreement", "diversity"), float),
    "num_images": int,
    "image_shape": lambda sides: tuple(int(side) for side in sides),
}
NESTED = ("tables", "moments")  # fields that are dictionaries of arrays


@dataclass(frozen=True)
class ReferenceStatistics:
    """Statistics of n reference images, as numpy arrays.

    source: where the images come from, to show to users. extractor: name and version of the extractor.
    features [n, D] are rounded to float16; mu [D] and sigma [D, D], float64, are computed from the unrounded features.
    class_agreement is nan if there were no logits. diversity is nan, and perceptual "", if there was no perceptual
    distance; diversity is also nan if no class has two images.
    tables: of each of `TABLES`, of videos of `VIDEO_TABLES` too, the mean rows of the images at even and at odd places,
        [2, k]; none where only features are known.
    moments: mean and covariance of other features, as NAME_mu [D] and NAME_sigma [D, D].
    """

    source: str
    extractor: str
    num_images: int
    image_shape: tuple[int, ...]  # C, H, W, of videos that of a frame
    labels: np.ndarray  # [n] int16
    features: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    class_agreement: float
    tables: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    diversity: float
    perceptual: str

    @property
    def has_features(self) -> bool:
        """Whether the statistics were made with an extractor."""
        return self.mu.size > 0

    @property
    def has_images(self) -> bool:
        """Whether spectra and edges are known: of some published statistics they are not."""
        return bool(self.tables)

    def mean(self, table: str) -> Tensor:
        """The mean row [k] of a table over all images, float64."""
        return self.halves(table).T @ torch.tensor([self.num_images - self.num_images // 2, self.num_images // 2],
                                                   dtype=torch.float64) / self.num_images  # fmt: skip

    def halves(self, table: str) -> Tensor:
        """The mean rows [2, k] of a table over either half of the images, float64."""
        return torch.from_numpy(self.tables[table]).double()

    def without_features(self) -> ReferenceStatistics:
        """A copy without features and class agreement, for use with another extractor or with none."""
        none = np.zeros((self.num_images, 0), np.float16)
        return replace(
            self,
            extractor="",
            features=none,
            mu=np.zeros(0),
            sigma=np.zeros((0, 0)),
            class_agreement=float("nan"),
            moments={},
        )

    def frechet(self, name: str = "") -> FrechetStatistics | None:
        """Mean and covariance of the features, or of others by name, for `frechet_distance`; None if not known."""
        if not name:
            return FrechetStatistics(self.mu, self.sigma, self.num_images) if self.has_features else None
        if f"{name}_mu" not in self.moments:
            return None
        return FrechetStatistics(self.moments[f"{name}_mu"], self.moments[f"{name}_sigma"], self.num_images)

    def save(self, path: str | Path) -> None:
        """Write the .npz file atomically: a reader sees the old file or the complete new one."""
        write_bytes(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the .npz file."""
        entries: dict[str, Any] = {
            field.name: np.asarray(getattr(self, field.name)) for field in fields(self) if field.name not in NESTED
        }
        for name in NESTED:
            entries |= {f"{name}.{key}": array for key, array in getattr(self, name).items()}
        content = io.BytesIO()
        np.savez_compressed(content, format=np.asarray(FORMAT), **entries)
        return content.getvalue()

    @classmethod
    def load(cls, path: str | Path) -> ReferenceStatistics:
        """Read a file that `save` wrote; pickles are refused.

        Raises: FileNotFoundError; ValueError if the file is damaged, incomplete or of another format.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"reference statistics {path} do not exist")
        with reading(path, "is damaged or not a file of reference statistics"):
            entries: dict[str, Any] = {**npz_arrays(path)}
        found = entries.pop("format", None)
        if found is None or found.shape != () or int(found) != FORMAT:
            raise ValueError(
                f"{path} has format {found}, this version reads {FORMAT}: make it anew, dar-distill statistics DATA "
                f"--output {path.name}"
            )
        nested: dict[str, dict[str, np.ndarray]] = {name: {} for name in NESTED}
        for name in [name for name in entries if name.split(".")[0] in NESTED]:
            group, key = name.split(".", 1)
            nested[group][key] = entries.pop(name)
        entries |= nested
        names = {field.name for field in fields(cls)}
        if set(entries) != names:
            raise ValueError(f"{path} lacks or adds: {', '.join(sorted(names ^ set(entries)))}")
        for name, kind in KINDS.items():
            try:
                entries[name] = kind(entries[name])
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: {name} is of the wrong kind: {error}") from error
        statistics = cls(**entries)
        statistics._check(path)
        return statistics

    def _check(self, path: Path) -> None:
        n, dim = self.num_images, len(self.mu)
        wanted = {
            "labels": (n,),
            "features": (n, dim),
            "mu": (dim,),
            "sigma": (dim, dim),
        }
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{path}: {name} has shape {array.shape}; {shape} was expected")
        for name in wanted:
            if not np.isfinite(getattr(self, name)).all():
                raise ValueError(f"{path}: {name} holds nan or infinite values")
        check_moments(f"{path}", self.mu, self.sigma)
        for name in {key.rpartition("_")[0] for key in self.moments}:
            mu, sigma = (self.moments.get(f"{name}_{part}", np.zeros(0)) for part in ("mu", "sigma"))
            check_moments(f"{path}: {name}", mu, sigma)
        for name, table in self.tables.items():
            if np.isinf(table).any():  # nan stands for what is not known
                raise ValueError(f"{path}: {name} holds infinite values")
        if self.tables and set(self.tables) - set(VIDEO_TABLES) != set(TABLES):
            names = ", ".join(sorted((set(self.tables) - set(VIDEO_TABLES)) ^ set(TABLES)))
            raise ValueError(
                f"{path} lacks or adds {names}: make it anew, dar-distill statistics DATA --output {path.name}"
            )
        for name, table in self.tables.items():
            if table.ndim != 2 or len(table) != 2:
                raise ValueError(f"{path}: {name} has shape {table.shape}; two rows were expected")


def extractor_id(extractor: Extractor) -> str:
    """Name and version of an extractor, as stored in `ReferenceStatistics.extractor`."""
    return f"{extractor.name}-{extractor.version}"


def reference_from_images(
    images: Tensor,
    labels: Tensor,
    extractor: Extractor | None,
    source: str,
    *,
    perceptual: PerceptualDistance | None = None,
) -> ReferenceStatistics:
    """Compute the statistics of a reference set, to store with `save`.

    Args:
        images: [n, C, H, W], or videos [n, C, F, H, W], in [-1, 1].
        labels: [n] class numbers.
        extractor: None for statistics without features.
        source: such as "Fashion-MNIST train".
        perceptual: if given, also measure the diversity within classes with it.

    Raises: ValueError if there are fewer than 4 images or the labels do not match.
    """
    check_samples(images, MIN_IMAGES)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels {list(labels.shape)} do not belong to images {list(images.shape)}")
    images, labels = images.detach().cpu(), labels.detach().cpu()
    pictures = stills(images)
    extracted, statistics = Features(torch.zeros(len(images), 0)), None
    moments: dict[str, np.ndarray] = {}
    if extractor:
        extracted = extractor.extract(pictures)
        statistics = frechet_statistics(extracted.features)
        others = {"spatial": extracted.spatial, "patches": patch_features(extractor, pictures)}
        for name, features in others.items():
            if features is not None:
                found = frechet_statistics(features)
                moments |= {f"{name}_mu": found.mu, f"{name}_sigma": found.sigma}
    rows = {name: rows_of(name, images).double() for name in (*TABLES, *VIDEO_TABLES)}
    rows = {name: table for name, table in rows.items() if not table.isnan().all()}  # of pictures none of videos
    agreement = float("nan")
    if extracted.logits is not None:
        agreement = (extracted.logits.argmax(1) == labels).double().mean().item()
    return ReferenceStatistics(
        source=source,
        extractor=extractor_id(extractor) if extractor else "",
        num_images=len(images),
        image_shape=frame_shape(images.shape[1:]),
        labels=labels.to(torch.int16).numpy(),
        features=extracted.features.half().numpy(),
        mu=statistics.mu if statistics else np.zeros(0),
        sigma=statistics.sigma if statistics else np.zeros((0, 0)),
        class_agreement=agreement,
        tables={name: torch.stack([table[::2].mean(0), table[1::2].mean(0)]).numpy() for name, table in rows.items()},
        moments=moments,
        diversity=class_diversity(perceptual, pictures, labels).mean().item() if perceptual else float("nan"),
        perceptual=perceptual.name if perceptual else "",
    )
