"""Distil a ring of eight Gaussians, whose score is known: which objective gives what, in minutes on one CPU core.

    python scripts/distil_ring.py --arms 'told:' 'blind: objective.fake_score.knows_step=false'

The teacher is exact; student and critic are small networks that begin as fits of it. All goes through the training
code of `run`. An arm is NAME: OVERRIDES, as `run` takes them; a table of the final samples comes out, against the
teacher's own law.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from matplotlib.figure import Figure
from torch import Tensor, nn

from distill.conditions import ClassLabels
from distill.config import config_from_overrides
from distill.errors import UserError
from distill.objectives import RunConfig, flow_matching_loss
from distill.objectives.task import DistillationTask, models_from
from distill.progress import show_progress
from distill.sampling import few_step_sampler, interpolate
from distill.seeds import generator_for

MODES, STD = 8, 0.08
SETTINGS = (
    "output=unused",
    "teacher.cfg_scale=1",
    "student.ema_decay=0.99",
    "student.optim.lr=5e-4",
    "train.steps=1500",
    "train.batch_size=256",
)
CRITIC = ("objective.fake_score.updates=5", "objective.fake_score.optim.lr=1e-3")


class Ring(nn.Module):
    """The exact velocity of a mixture of N(mean_k, STD^2) on the unit circle; class 0 are the even modes, 1 the odd.

    E[x0 | x_t] = sum_k p_k(x_t) (mean_k + (1-t) STD^2 / v (x_t - (1-t) mean_k)),   v = (1-t)^2 STD^2 + t^2,
    with p_k the share of mode k at x_t; velocity = (x_t - E) / t.
    """

    sample_shape, t_range, null_label = (2, 1, 1), (0.001, 1.0), 2
    gradient_checkpointing = False

    def __init__(self) -> None:
        super().__init__()
        angles = 2 * math.pi * torch.arange(MODES) / MODES
        self.means = nn.Parameter(torch.stack([angles.cos(), angles.sin()], 1), requires_grad=False)

    def members(self, y: Tensor) -> Tensor:
        """(B, MODES): whether each mode belongs to the class."""
        return (y[:, None] == 2) | (torch.arange(MODES) % 2 == y[:, None])

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, t = x_t.flatten(1)[:, None], t.view(-1, 1, 1)
        variance = (1 - t) ** 2 * STD**2 + t**2
        away = x - (1 - t) * self.means  # (B, MODES, 2)
        logits = -away.square().sum(-1) / (2 * variance[..., 0])
        share = logits.masked_fill(~self.members(y), -math.inf).softmax(1)
        x0 = (share[..., None] * (self.means + (1 - t) * STD**2 / variance * away)).sum(1)
        return ((x[:, 0] - x0) / t[:, 0]).view_as(x_t)

    def draw(self, y: Tensor, generator: torch.Generator) -> Tensor:
        """Samples (B, 2, 1, 1) of the classes."""
        modes = torch.multinomial(self.members(y).float(), 1, generator=generator)[:, 0]
        return (self.means[modes] + STD * torch.randn(len(y), 2, generator=generator)).view(-1, 2, 1, 1)


class Net(nn.Module):
    """A small network with a backbone's interface."""

    sample_shape, t_range, null_label = Ring.sample_shape, Ring.t_range, Ring.null_label
    gradient_checkpointing = False
    t_embedding_size, width = 64, 128
    feature_shape = (1, width)

    def __init__(self) -> None:
        super().__init__()
        d = self.t_embedding_size
        self.frequencies = nn.Parameter(torch.exp(torch.linspace(0, math.log(100), d // 2)), requires_grad=False)
        self.t_embedder = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.y_embedder = nn.Embedding(3, d)
        self.x_embedder = nn.Linear(2, d)
        widths = (2 * d, self.width, self.width, self.width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths))
        self.head = nn.Linear(self.width, 2)

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, t_offset: Tensor | None = None) -> Tensor:
        return self.head(self.features(x_t, t, y, [len(self.blocks)], t_offset)[0][:, 0]).view_as(x_t)

    def features(
        self, x_t: Tensor, t: Tensor, y: Tensor, after: Sequence[int], t_offset: Tensor | None = None
    ) -> list[Tensor]:
        angles = t[:, None] * self.frequencies
        c = self.t_embedder(torch.cat([angles.cos(), angles.sin()], 1)) + self.y_embedder(y)
        c = c if t_offset is None else c + t_offset
        hidden = [torch.cat([self.x_embedder(x_t.flatten(1)), F.silu(c)], 1)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        return [hidden[number][:, None] for number in after]


class RingData:
    """Samples of the ring, as many as an update may ask for."""

    sample_shape, condition = Ring.sample_shape, ClassLabels(2)

    def __init__(self, ring: Ring, num: int = 50_000) -> None:
        self.labels = self.condition.balanced(num)
        self._samples = ring.draw(self.labels, generator_for(0, "data"))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, noise: Any) -> tuple[Tensor, Tensor]:
        return self._samples[indices], self.labels[indices]


def fitted(ring: Ring, num_updates: int = 4000) -> Net:
    """A network fitted to the ring by flow matching."""
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_updates)
    for step in range(num_updates):
        generator = generator_for(0, "fit", step)
        y = torch.randint(3, (512,), generator=generator)
        x0, t = ring.draw(y, generator), torch.rand(512, generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        loss = flow_matching_loss(net(interpolate(x0, eps, t), t, y), x0, eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net


@dataclass(frozen=True)
class Found:
    """distance: sliced Wasserstein of the student's samples to the teacher's law. modes: that at least a quarter of
    their share of samples lie at. outside: share of samples further than 4 STD from any mode of their class.
    """

    distance: float
    modes: int
    outside: float
    seconds: float
    samples: Tensor


def distil(config: RunConfig, ring: Ring, net: Net) -> Found:
    """Train a student of the ring and look at its samples."""
    models = models_from(cast(Any, copy.deepcopy(net)), config)
    task = DistillationTask(
        config, replace(models, teacher=cast(Any, ring)), Accelerator(cpu=True), 0.7, data=RingData(ring)
    )
    started = time.perf_counter()
    for step in range(config.train.steps):
        task.update(step)
    task.check()
    return judged(task, ring, time.perf_counter() - started)


@torch.no_grad()
def judged(task: DistillationTask, ring: Ring, seconds: float, num: int = 8000) -> Found:
    sampler = few_step_sampler("student", task.averaged_student, task.t_list)
    generator = generator_for(0, "judge")
    y = ClassLabels(2).balanced(num)
    noise = torch.randn(sampler.num_noises, num, *ring.sample_shape, generator=generator)
    samples, real = sampler.draw(noise, y).flatten(1), ring.draw(y, generator).flatten(1)
    distances = torch.cdist(samples, ring.means).masked_fill(~ring.members(y), math.inf)
    nearest = distances.min(1)
    near = nearest.values < 4 * STD
    counts = torch.bincount(nearest.indices[near], minlength=MODES)
    return Found(
        distance=sum(sliced_wasserstein(samples[y == k], real[y == k]) for k in (0, 1)) / 2,
        modes=int((counts >= num / MODES / 4).sum()),
        outside=float((~near).float().mean()),
        seconds=seconds,
        samples=samples,
    )


def sliced_wasserstein(a: Tensor, b: Tensor, num: int = 64) -> float:
    """W1 averaged over `num` directions, of as many samples."""
    angles = math.pi * torch.arange(num) / num
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).abs().mean())


def floor(ring: Ring) -> float:
    """The distance of as many samples of the teacher's own law."""
    generator = generator_for(0, "floor")
    y = ClassLabels(2).balanced(8000)
    a, b = (ring.draw(y, generator).flatten(1) for _ in range(2))
    return sum(sliced_wasserstein(a[y == k], b[y == k]) for k in (0, 1)) / 2


def configured(overrides: list[str], seed: int) -> RunConfig:
    """The configuration of an arm. Raises: UserError as `run`."""
    config = config_from_overrides(RunConfig, [*SETTINGS, *overrides, f"train.seed={seed}"])
    if hasattr(config.objective, "fake_score"):
        return config_from_overrides(RunConfig, [*SETTINGS, *CRITIC, *overrides, f"train.seed={seed}"])
    return config


def draw(shown: Mapping[str, Tensor], path: Path) -> None:
    """Samples side by side, even and odd modes in two colours."""
    figure = Figure(figsize=(2.2 * len(shown), 2.5), dpi=150)
    for ax, (name, samples) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        for label, colour in ((0, "#0072b2"), (1, "#d55e00")):
            x, y = samples[label::2].T.numpy()
            ax.plot(x, y, ",", color=colour, alpha=0.7)
        ax.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal", xticks=[], yticks=[])
        ax.set_title(name, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["dmd:"], metavar="NAME: OVERRIDES")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm (3)")
    parser.add_argument("--figure", type=Path, help="a PNG of what the first training of each arm makes")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    show_progress()
    ring = Ring()
    net = fitted(ring)
    print(f"teacher's own law at as many samples: {floor(ring):.3f}\n")
    print("| arm | distance, by seed | modes | outside | seconds |\n|---|---|---|---|---|")
    shown = {"teacher's law": ring.draw(ClassLabels(2).balanced(2000), generator_for(0, "shown")).flatten(1)}
    try:
        for arm in args.arms:
            name, _, overrides = arm.partition(":")
            found = []
            for seed in range(args.seeds):
                found.append(distil(configured(overrides.split(), seed), ring, net))
            print(
                f"| {name} | {' '.join(f'{one.distance:.3f}' for one in found)} "
                f"| {' '.join(str(one.modes) for one in found)} "
                f"| {' '.join(f'{one.outside:.1%}' for one in found)} | {found[0].seconds:.0f} |",
                flush=True,
            )
            shown[name] = found[0].samples[:2000]
        if args.figure:
            draw(shown, args.figure)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
