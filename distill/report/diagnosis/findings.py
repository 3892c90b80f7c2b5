"""The results of a diagnosis in sentences and in one table. Every sentence depends on measured values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from dar.diagnostics import EFFECTS, variance_shares
from distill.diagnosis.results import LOSS, NOUNS, REMOVAL_COST, Diagnosis, ModelDiagnosis
from distill.diagnosis.summaries import SUMMARIES, Estimate, Summary, difference, estimate
from distill.report.table import MISSING, Cell, format_cell, format_number

ALIKE = 0.9  # the cosine above which arXiv:2605.20708 calls neighbouring blocks redundant
READABLE = 0.95  # of R^2
EVEN = 0.98  # of the number of sources: a reader whose effective number reaches this share is called even
ROUNDING = 1e-6
NUM_ERRORS = 2  # a value within this many standard errors of zero is called no effect


@dataclass(frozen=True)
class Row:
    """One line of the table at the top: per model the value, its error and the difference from the reference."""

    title: str
    explanation: str
    cells: Sequence[tuple[str, str, str]]


def table_rows(diagnosis: Diagnosis) -> list[Row]:
    """All summaries that at least one model has, then the probe and the variance of the weights."""
    rows = []
    for row in SUMMARIES:
        cells = [_cell(row, model, diagnosis.reference_of(model)) for model in diagnosis.models]
        if any(value != MISSING for value, _, _ in cells):
            rows.append(Row(row.title, row.explanation, cells))
    probe = "held-out R² of t read linearly off the hidden state, mean and spread over splits"
    for title, place in (("R² of t at the embedding", 0), ("R² of t after the last block", -1)):
        cells = [(*_text(Estimate(m.probe.r2[place], m.probe.spread[place])), "") for m in diagnosis.models]
        rows.append(Row(title, probe, cells))
    if any(model.routing for model in diagnosis.models):
        shares = [explained(model) for model in diagnosis.models]
        cells = [(MISSING if s is None else percent(s[0]), "", "") for s in shares]
        rows.append(Row("Variance of the weights that t explains", "summed over all readers and sources", cells))
    return rows


def _cell(row: Summary, model: ModelDiagnosis, reference: ModelDiagnosis | None) -> tuple[str, str, str]:
    value = estimate(row, model)
    against = difference(row, model, reference) if reference is not None else None
    if value is None:
        return MISSING, "", ""
    if against is None:
        return *_text(value), ""
    number, error = _text(against)
    sign = "× " if row.is_log else "+" if against.value >= 0 else ""
    return *_text(value), f"{sign}{number} {error}"


def _text(value: Estimate) -> tuple[str, str]:
    """("1.234", "± 0.012"): decimals chosen so that the error has two digits; no error if it is only rounding."""
    if not value.error > ROUNDING * abs(value.value):
        return format_number(value.value), ""
    ends = Cell(value.value, value.value - value.error, value.value + value.error)
    decimals = max(0, 1 - int(np.floor(np.log10(value.error))))
    return format_cell(ends)[0], f"± {value.error:.{decimals}f}"


def percent(share: float) -> str:
    """A share as text: 120 %, 12 %, 1.2 %, under 0.1 %."""
    if abs(share) < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.0f} %"


def explained(model: ModelDiagnosis) -> np.ndarray | None:
    """Shares of the variance of all weights together, by `EFFECTS`; None if the weights do not vary."""
    if model.routing is None:
        return None
    shares = variance_shares(torch.from_numpy(model.routing.variances.sum(0))).numpy()
    return None if np.isnan(shares).any() else shares


class Finding(NamedTuple):
    """A sentence about one model."""

    model: str
    sentence: str


def for_each(diagnosis: Diagnosis, say: Callable[[ModelDiagnosis], str]) -> list[Finding]:
    """One finding per model."""
    return [Finding(model.name, capitalised(say(model))) for model in diagnosis.models]


def capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def of_hidden(model: ModelDiagnosis) -> str:
    rms, _ = model.profiles["hidden_rms"].mean_over_t
    blocks = rms[1:]
    if not (blocks > 0).all():
        return "the hidden state is zero somewhere."
    low, high = int(blocks.argmin()) + 1, int(blocks.argmax()) + 1
    factor = blocks[-1] / blocks[0]
    verb = "grows" if factor > 2 else "shrinks" if factor < 0.5 else "changes by less than a factor of two"
    return (
        f"from the first block's end to the last's the hidden state {verb}: RMS {format_number(blocks[0])} to "
        f"{format_number(blocks[-1])} (mean over t), {format_number(factor)} times as much. Its smallest and largest, "
        f"z_{low} and z_{high}, are a factor of {format_number(blocks.max() / blocks.min())} apart."
    )


def of_sources(model: ModelDiagnosis) -> str:
    profile = model.profiles["source_rms"]
    rms, _ = profile.mean_over_t
    loudest = 1 + int(rms[1:].argmax())
    return (
        f"the loudest sublayer is {profile.places[loudest]} with RMS {format_number(rms[loudest])}; the median of all "
        f"is {format_number(float(np.median(rms[1:])))}, the embedding's is {format_number(rms[0])}."
    )


def of_gradient(model: ModelDiagnosis) -> str:
    profile = model.profiles["gradient_rms"]
    rms, _ = profile.mean_over_t
    if not (rms > 0).all():
        return "some blocks get no gradient at all."
    high, low = int(rms.argmax()), int(rms.argmin())
    return (
        f"in the mean over t the first block gets {format_number(rms[0] / rms[-1])} times the gradient of the last. "
        f"It is largest at {profile.places[high]} and smallest at {profile.places[low]}; between them lies a factor "
        f"of {format_number(rms.max() / rms.min())}."
    )


def of_cosine(model: ModelDiagnosis) -> str:
    profile = model.profiles["neighbour_cosine"]
    cosine, _ = profile.mean_over_t
    pairs = cosine[1:]
    if not len(pairs):
        return "there is one block only."
    low = 1 + int(pairs.argmin())
    return (
        f"{int((pairs > ALIKE).sum())} of {len(pairs)} pairs of neighbouring blocks have a cosine above {ALIKE}; the "
        f"mean is {pairs.mean():.3f}. The sharpest turn is from {profile.places[low]}: {cosine[low]:.3f}."
    )


def of_chunks(model: ModelDiagnosis) -> str:
    chunks = model.chunks
    spared = 1 - chunks.scatter / chunks.uniform_scatter if chunks.uniform_scatter > 0 else 0.0
    return (
        f"the outputs of neighbouring sublayers have a mean cosine of {chunks.similarity:.2f}, for which the rule "
        f"gives S* = {chunks.chunk_size}. Cut where they differ most, {len(chunks.lengths)} chunks have the lengths "
        f"{', '.join(map(str, chunks.lengths))} and {percent(spared)} less scatter inside than uniform ones."
    )


def relative_cost(model: ModelDiagnosis) -> tuple[np.ndarray, np.ndarray]:
    """Rise of the loss relative to the loss at that t, and its standard error, (n_t, L) each."""
    profile, loss = model.profiles[REMOVAL_COST], model.profiles[LOSS].mean
    return profile.mean / loss, profile.standard_error / loss


def of_removal(model: ModelDiagnosis, t_values: np.ndarray) -> str:
    profile = model.profiles[REMOVAL_COST]
    cost, _ = relative_cost(model)
    mean, error = profile.mean_over_t
    worst, no_effect = int(cost.mean(0).argmax()), int((np.abs(mean) <= NUM_ERRORS * error).sum())
    helped = int((mean < -NUM_ERRORS * error).sum())
    first, last = (profile.places[int(cost[t].argmax())] for t in (0, -1))
    text = (
        f"what matters most is {profile.places[worst]}: without it the loss rises by {percent(cost[:, worst].mean())} "
        "(mean over t). "
    )
    if no_effect:
        text += f"{no_effect} of {len(mean)} sublayers cannot be told from idle, within {NUM_ERRORS} standard errors. "
    if helped:
        text += f"{helped} of {len(mean)} do harm: the loss falls without them. "
    ends = f"at t = {t_values[0]:.2g}", f"at t = {t_values[-1]:.2g}"
    if first == last:
        return text + f"Both {ends[0]} and {ends[1]} it is {first} whose removal costs most."
    return text + f"What matters most changes with t: {first} {ends[0]}, {last} {ends[1]}."


def of_probe(model: ModelDiagnosis) -> str:
    r2 = model.probe.r2
    readable = np.flatnonzero(r2 >= READABLE)
    best = int(r2.argmax())
    where = (
        f"from z_{readable[0]} on it is at least {READABLE}"
        if len(readable) and (r2[readable[0] :] >= READABLE).all()
        else f"it first reaches {READABLE} at z_{readable[0]}, and falls below again"
        if len(readable)
        else f"it never reaches {READABLE}"
    )
    return f"R² is {r2[0]:.3f} at the embedding; {where}. Best at z_{best}: {r2[best]:.3f}."


def of_choice(model: ModelDiagnosis) -> str:
    if model.routing is None:
        return "no weights over depth: every sublayer reads what the routing's stream holds."
    places = model.routing.with_choice
    if not len(places):
        return "no reader has a choice."
    counts = np.array([len(model.routing.source_names[i]) for i in places])
    number = model.profiles["effective_number"].values[:, places].mean((0, 2))
    share = model.profiles["embedding_share"].values[:, places].mean((0, 2))
    sharpest = int((number / counts).argmin())
    name = model.routing.reader_names[places[sharpest]]
    negative = sum(int((weights < 0).any(1).sum()) for weights in model.routing.weights)
    sign = f" {negative} weights are negative; what is shown is their size." if negative else ""
    most = (
        f"the most selective is {name} with {number[sharpest]:.1f} of {counts[sharpest]}"
        if number[sharpest] < EVEN * counts[sharpest]
        else "all of them read nearly evenly"
    )
    return (
        f"a reader has {counts.mean():.1f} sources on average and uses {number.mean():.1f} of them in effect; {most}. "
        "The embedding gets "
        f"{percent(share.mean())} of the weight, where an even share would be {percent((1 / counts).mean())}.{sign}"
    )


def of_variance(model: ModelDiagnosis, num_images: int, num_classes: int, noun: str = "class") -> str:
    """num_classes: of equally many images; 1 where nothing is said of them."""
    if model.routing is None:
        return "no weights over depth."
    shares = explained(model)
    if shares is None:
        return f"the weights are the same for every t, {noun}, image and position."
    by_name = dict(zip(EFFECTS, shares, strict=True))
    # Means of a few images differ even if their classes do not: see dar.diagnostics.variance.
    by_chance = by_name["image"] * (num_classes - 1) / (num_images - num_classes)
    of_class = (
        f"the {noun} {percent(by_name['class'])} ({percent(by_chance)} is what {NOUNS[noun]} "
        f"without any effect would show of {num_images // num_classes} images each), the image within its {noun} "
        if num_classes > 1
        else "the image "
    )
    return (
        f"the timestep explains {percent(by_name['t'])} of the variance of the weights, the token's position "
        f"{percent(by_name['position'])}, {of_class}{percent(by_name['image'])}; the rest, "
        f"{percent(by_name['rest'])}, is their interplay."
    )
