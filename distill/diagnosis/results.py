"""The results of a diagnosis as plain data, and as JSON.

Legend: n_t times, N samples (one image each, used at every t with the same noise), K blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dar.diagnostics import ChunkProposal, propose_chunks

LOSS = "loss"
REMOVAL_COST = "removal_cost"


@dataclass(frozen=True, eq=False)
class Profile:
    """One quantity along depth and t, for every sample.

    places: names, by depth; positions: depth of each place in blocks: 0 is the embedding, K the end of the last block.
    values: (n_t, places, N).
    """

    title: str
    explanation: str
    unit: str
    log: bool
    axis: str
    places: Sequence[str]
    positions: np.ndarray
    values: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean over samples, (n_t, places)."""
        return self.values.mean(-1, dtype=np.float64)

    @property
    def standard_error(self) -> np.ndarray:
        """Standard error of the mean over samples, (n_t, places)."""
        return self.values.std(-1, ddof=1, dtype=np.float64) / np.sqrt(self.values.shape[-1])

    @property
    def mean_over_t(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard error over samples of each sample's mean over t, (places) each."""
        by_sample = self.values.mean(0, dtype=np.float64)
        return by_sample.mean(-1), by_sample.std(-1, ddof=1) / np.sqrt(by_sample.shape[-1])


@dataclass(frozen=True, eq=False)
class Probe:
    """Held-out R^2 of t from the hidden states z_0..z_K: mean and spread over splits, median penalty, (K + 1) each."""

    r2: np.ndarray
    spread: np.ndarray
    penalty: np.ndarray
    num_rows: int
    num_splits: int


@dataclass(frozen=True, eq=False)
class WeightsOverDepth:
    """Routing weights over depth.

    weights: per reader, its mean weights (n_sources, n_t).
    source_names: per reader, the names of its sources.
    variances: (readers, 5), by `dar.diagnostics.EFFECTS`, summed over each reader's sources.
    """

    reader_names: Sequence[str]
    source_names: Sequence[Sequence[str]]
    weights: Sequence[np.ndarray]
    variances: np.ndarray

    @property
    def with_choice(self) -> np.ndarray:
        """Indices of the readers with more than one source."""
        return np.array([i for i, sources in enumerate(self.source_names) if len(sources) > 1], dtype=int)


NOUNS = {"class": "classes", "prompt": "prompts"}
"""What a model is told, and several of them."""


def titled(name: str, stream: str) -> str:
    """What to call a stream of a model; the model itself where it has one only."""
    return f"{name}, {stream} stream" if stream else name


@dataclass(frozen=True, eq=False)
class ModelDiagnosis:
    """Results for one stream of a model. `profiles` has the names of the measures.

    name: as `titled`. similarity: mean cosine of every two sublayers' outputs over images, tokens and t, (L, L).
    stream: empty where the model has one only. sublayers: names of a block's, in order.
    """

    name: str
    path: str
    description: str
    num_blocks: int
    num_parameters: int
    profiles: Mapping[str, Profile]
    probe: Probe
    routing: WeightsOverDepth | None
    similarity: np.ndarray
    stream: str = ""
    sublayers: Sequence[str] = ("attn", "mlp")

    @property
    def model(self) -> str:
        """Its name without the stream's."""
        return self.name.removesuffix(titled("", self.stream))

    @property
    def per_block(self) -> int:
        return len(self.sublayers)

    @property
    def chunks(self) -> ChunkProposal:
        """Chunk boundaries proposed for this similarity, and the uniform ones from the paper's rule."""
        return propose_chunks(self.similarity)


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Several models, or streams of them, on the same images, noise and times.

    classes: numbers of those that the images are of; class_names: what to call them, where that is said.
    noun: a key of `NOUNS`. num_groups: of images of equal number, by which the variance of weights is split.
    reference: name of the model that the others are compared with, stream by stream.
    images: where the images come from.
    notes: stand-ins and limits that a reader must know.
    """

    models: Sequence[ModelDiagnosis]
    t_values: np.ndarray
    num_images: int
    classes: Sequence[int]
    images: str
    seed: int
    reference: str | None = None
    notes: Sequence[str] = ()
    elapsed_s: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    noun: str = "class"
    num_groups: int = 1

    @property
    def nouns(self) -> str:
        return NOUNS[self.noun]

    def is_reference(self, model: ModelDiagnosis) -> bool:
        return self.reference is not None and model.name == titled(self.reference, model.stream)

    def reference_of(self, model: ModelDiagnosis) -> ModelDiagnosis | None:
        """The same stream of the reference; None where there is none, or the model is it."""
        others = (other for other in self.models if self.is_reference(other) and other.stream == model.stream)
        return None if self.is_reference(model) else next(others, None)


def to_json(diagnosis: Diagnosis) -> str:
    """All values as JSON: profiles as mean and standard error by t and place, nan as null."""
    plain = {key: value for key, value in vars(diagnosis).items() if key != "models"}
    plain["models"] = [
        {
            **{key: value for key, value in vars(model).items() if key != "profiles"},
            "profiles": {name: _profile(profile) for name, profile in model.profiles.items()},
            "chunks": vars(model.chunks),
        }
        for model in diagnosis.models
    ]
    return json.dumps(_plain(plain), indent=1, allow_nan=False) + "\n"


def _profile(profile: Profile) -> dict[str, Any]:
    plain = {key: value for key, value in vars(profile).items() if key not in ("values", "log")}
    return {**plain, "mean": profile.mean, "standard_error": profile.standard_error}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (Probe, WeightsOverDepth)):
        return _plain(asdict(value))
    return value
