"""A look at the student on its way: is it getting better, is something going wrong, and which was the best so far?

The losses of distribution matching say neither. At a look the averaged student draws a fixed set of pictures; measures
that need no weights are held against the data's, or where those are not known the teacher's from the same noise:

    away = (value - yardstick) / spread,   spread: of one picture of the teacher to the next
    score = mean over the measures of |away|, those of spectrum, edges, texture, colour and variety alike

The best look is the one of the lowest score. It is a rule of thumb and two-sided: too sharp counts as too smooth does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from distill.config import GuardsConfig
from distill.metrics import MEASURES, Interval
from distill.metrics.registry import Context
from distill.render import frames

WATCHED = (
    "high_frequency_ratio",
    "edge_width",
    "edge_count",
    "grain",
    "sparsity_fine",
    "grid",
    "contrast",
    "colourfulness",
    "clipped_share",
    "flicker",
    "motion",
    "variety",
)
SHOWN = (*WATCHED, "low_frequency_psnr")
GUARDED: dict[str, tuple[tuple[str, ...], Callable[[float], float]]] = {
    "saturation": (("contrast", "colourfulness", "clipped_share"), abs),
    "grain": (("grain", "sparsity_fine"), lambda away: away),
    "grid": (("grid",), lambda away: away),
    "blur": (("edge_width",), lambda away: away),
    "variety": (("variety",), lambda away: -away),
}
"""Of each guard the measures, and how bad it is that one is so far away from its yardstick."""
COARSE = 8  # side of the pictures whose distances are the variety
RESAMPLES = 100
HALF_WIDTH = 1.96  # of a 95 % interval, in standard errors
LOWER = 0.5  # what guards take learning rates by


@dataclass(frozen=True)
class Look:
    """values: by measure. away: of the watched ones, from the yardstick, in spreads. score: the mean of their sizes.

    decay: of the average that was looked at, where it is one of `student.more_ema_decays`.
    """

    step: int
    values: dict[str, float]
    away: dict[str, float]
    score: float
    decay: float | None = None

    def figures(self) -> dict[str, float]:
        """For the log; of a further average its score alone."""
        if self.decay is not None:
            return {f"watch/score/{self.decay:g}": self.score}
        named = {f"watch/{name}": value for name, value in self.values.items()}
        return {
            **named,
            **{f"watch/away/{name}": value for name, value in self.away.items()},
            "watch/score": self.score,
        }


@dataclass(frozen=True)
class Event:
    """A guard that acted. why: what it saw."""

    step: int
    guard: str
    action: str
    why: str

    def __str__(self) -> str:
        return f"update {self.step}: {self.guard}: {self.why}: {self.action}"


def watched_values(images: Tensor, labels: Tensor, teachers: Tensor | None) -> dict[str, float]:
    """The values of `SHOWN` that pictures have; labels [N]; teachers: the teacher's from the same noise."""
    found = _measured(SHOWN, images, labels, teachers, num_bootstrap=0)
    values = {name: interval.value for name, interval in found.items()}
    return {**values, "variety": float(varieties(images, labels).mean())}


def _measured(
    names: Sequence[str], images: Tensor, labels: Tensor, teachers: Tensor | None, *, num_bootstrap: int
) -> dict[str, Interval]:
    """Measures by name, of those that pictures have."""
    images, paired_to = images.cpu().float(), None if teachers is None else teachers.cpu().float()
    context = Context(images, labels.cpu(), None, None, None, None, paired_to, seed=0, num_bootstrap=num_bootstrap)
    computed = {name: MEASURES[name].compute(context) for name in names if name in MEASURES}
    return {name: interval for name, interval in computed.items() if interval is not None}


def varieties(images: Tensor, labels: Tensor) -> Tensor:
    """How far each picture, made coarse, is from the mean of its condition's (of all, where it is alone), [N]."""
    coarse = torch.stack([adaptive_avg_pool2d(frames(image[None]).float(), COARSE).flatten() for image in images])
    same = (labels[:, None] == labels).float()
    same = torch.where(same.sum(1, keepdim=True) > 1, same, torch.ones_like(same))
    counts = same.sum(1, keepdim=True)
    away = (coarse - same @ coarse / counts).square().mean(1).sqrt()
    return away * (counts[:, 0] / (counts[:, 0] - 1)).sqrt()


@dataclass
class Yardstick:
    """target: values to come to. spread: of one picture of the teacher to the next."""

    target: dict[str, float]
    spread: dict[str, float]

    @classmethod
    def of(cls, teachers: Tensor, labels: Tensor, data: Mapping[str, float]) -> Yardstick:
        """From the teacher's pictures, and the data's values by measure, which are the target where they are known."""
        found = _measured(WATCHED, teachers, labels, None, num_bootstrap=RESAMPLES)
        spread = {name: spread_of(interval, len(teachers)) for name, interval in found.items()}
        spread["variety"] = float(varieties(teachers, labels).std())
        own = watched_values(teachers, labels, None)
        target = {name: data.get(name, own[name]) for name in WATCHED if name in own}
        known = [name for name in target if spread[name] > 0 and math.isfinite(target[name])]
        return cls({name: target[name] for name in known}, {name: spread[name] for name in known})

    def look(self, step: int, values: dict[str, float], decay: float | None = None) -> Look:
        away = {
            name: (values[name] - self.target[name]) / self.spread[name]
            for name in self.target
            if math.isfinite(values.get(name, math.nan))
        }
        score = sum(map(abs, away.values())) / len(away) if away else math.inf
        return Look(step, values, away, score, decay)


def spread_of(interval: Interval, num: int) -> float:
    """The standard deviation of one picture to the next, from the interval of a mean over `num`."""
    return (interval.high - interval.low) / (2 * HALF_WIDTH) * math.sqrt(num)


def faults(look: Look, lag: float | None, guards: GuardsConfig) -> dict[str, str]:
    """What is wrong at a look, in words, by guard. lag: the critic's, None where there is none."""
    found: dict[str, str] = {}
    low, high = guards.lag_band
    if lag is not None and not low <= lag <= high:
        found["lag"] = f"the critic's lag is {lag:.3g}, not in [{low:g}, {high:g}]"
    for guard, (names, badness) in GUARDED.items():
        far = {name: badness(look.away[name]) for name in names if name in look.away}
        worst = max(far, key=far.__getitem__, default=None)
        if worst is not None and far[worst] > guards.limit:
            found[guard] = f"{worst} is {look.values[worst]:.3g}, {look.away[worst]:+.2g} spreads from its yardstick"
    return {guard: why for guard, why in found.items() if getattr(guards, guard) != "off"}


@dataclass
class Watch:
    """What was seen so far; a checkpoint holds it.

    best: the index of the best look; averages: the student's trained weights there, on the CPU. rate: what guards have
    brought learning rates down to. stopped: whether one ended the training.
    """

    looks: list[Look] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    best: int | None = None
    averages: dict[str, Tensor] = field(default_factory=dict)
    rate: float = 1.0
    stopped: bool = False

    @property
    def best_look(self) -> Look | None:
        return None if self.best is None else self.looks[self.best]

    def add(self, look: Look) -> bool:
        """Take up a look. Returns: whether it is better than all before."""
        is_best = self.best_look is None or look.score < self.best_look.score
        self.looks.append(look)
        if is_best:
            self.best = len(self.looks) - 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return {
            "looks": [[look.step, look.values, look.away, look.score, look.decay] for look in self.looks],
            "events": [[event.step, event.guard, event.action, event.why] for event in self.events],
            "best": self.best,
            "averages": self.averages,
            "rate": self.rate,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.looks = [Look(*values) for values in state["looks"]]
        self.events = [Event(*values) for values in state["events"]]
        self.best, self.averages = state["best"], state["averages"]
        self.rate, self.stopped = state["rate"], state["stopped"]
