"""Reduces a profile to one number per model, with its error: a registry.

To add one: a function of a `ModelDiagnosis` that returns one number per sample, (N), or None, decorated with
`@summary`. Models see the same images and noise, so differences are taken sample by sample. Their errors are far
smaller than those of the numbers themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from distill.diagnosis.results import LOSS, REMOVAL_COST, ModelDiagnosis

PerSample = Callable[[ModelDiagnosis], np.ndarray | None]


@dataclass(frozen=True)
class Summary:
    """One row. is_log: the numbers are logarithms, and the row shows factors."""

    title: str
    explanation: str
    per_sample: PerSample
    is_log: bool = False


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error over samples, in the number's own unit."""

    value: float
    error: float


SUMMARIES: list[Summary] = []


def summary(title: str, explanation: str, *, is_log: bool = False) -> Callable[[PerSample], PerSample]:
    """Register a function that returns one number per sample."""

    def add(per_sample: PerSample) -> PerSample:
        SUMMARIES.append(Summary(title, explanation, per_sample, is_log))
        return per_sample

    return add


def estimate(row: Summary, model: ModelDiagnosis) -> Estimate | None:
    """The mean over samples; for logarithms its exponential, the geometric mean."""
    values = row.per_sample(model)
    return None if values is None else _estimate(values, row.is_log)


def difference(row: Summary, model: ModelDiagnosis, reference: ModelDiagnosis) -> Estimate | None:
    """model - reference, sample by sample; for logarithms the factor between them."""
    values, others = row.per_sample(model), row.per_sample(reference)
    return None if values is None or others is None else _estimate(values - others, row.is_log)


def _estimate(values: np.ndarray, is_log: bool) -> Estimate:
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return Estimate(float(np.exp(mean)), float(np.exp(mean) * error)) if is_log else Estimate(mean, error)


def _log_ratio(of: np.ndarray, over: np.ndarray) -> np.ndarray | None:
    """Mean over t of the logarithm of a ratio (n_t, N); None if a value is not positive."""
    return np.log(of / over).mean(0) if (of > 0).all() and (over > 0).all() else None


@summary("Loss", "flow matching loss, mean over t")
def loss(model: ModelDiagnosis) -> np.ndarray:
    return model.profiles[LOSS].values[:, 0].mean(0)


@summary(
    "Growth of the hidden state",
    "RMS after the last block over that after the first, geometric mean over t and images",
    is_log=True,
)
def growth(model: ModelDiagnosis) -> np.ndarray | None:
    rms = model.profiles["hidden_rms"].values
    return _log_ratio(rms[:, -1], rms[:, 1])


@summary("Decay of the gradient", "RMS of dL/dv at the first block over that at the last, likewise", is_log=True)
def decay(model: ModelDiagnosis) -> np.ndarray | None:
    rms = model.profiles["gradient_rms"].values
    return _log_ratio(rms[:, 0], rms[:, -1])


@summary("Cosine of neighbouring blocks", "mean over the pairs of blocks; 1: a block leaves the direction as it is")
def redundancy(model: ModelDiagnosis) -> np.ndarray | None:
    cosine = model.profiles["neighbour_cosine"].values[:, 1:]  # the first pair is that of the embedding
    return cosine.mean((0, 1)) if cosine.size else None


@summary("Cost of removing a sublayer", "rise of the loss over the loss itself, mean over sublayers and t")
def removal(model: ModelDiagnosis) -> np.ndarray:
    loss_by_t = model.profiles[LOSS].mean  # (n_t, 1)
    return (model.profiles[REMOVAL_COST].values.mean(1) / loss_by_t).mean(0)


@summary("Effective share of the sources", "exp(entropy) over their number, mean over readers with a choice")
def effective_share(model: ModelDiagnosis) -> np.ndarray | None:
    if model.routing is None:
        return None
    places = model.routing.with_choice
    counts = np.array([len(model.routing.source_names[i]) for i in places])
    return (model.profiles["effective_number"].values[:, places] / counts[:, None]).mean((0, 1))


@summary("Share of the embedding", "of the weights of readers with a choice")
def embedding(model: ModelDiagnosis) -> np.ndarray | None:
    if model.routing is None:
        return None
    return model.profiles["embedding_share"].values[:, model.routing.with_choice].mean((0, 1))
