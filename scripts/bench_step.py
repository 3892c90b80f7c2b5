"""What routing costs in a model: a training step and a 4-step sample, plain residual beside DAR in chunks and dense.

    python scripts/bench_step.py --output benchmarks/step_cpu.md

On a GPU: SiT-XL/2 at 256 x 256 in bfloat16, by the fused kernels and by the torch path, eager and compiled. On a CPU:
three small models, by the torch path, arms in turn. (On the GPU one after another: two would not fit side by side.
There half of the arms are compiled; --arms cuts the work into pieces.)
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from bench_tools import is_cuda, milliseconds, parsed, parser_of, setup, table, time_in_turn, unless_out_of_memory

from dar import RoutingConfig, SiT, SiTConfig
from dar.presets import preset
from distill.files import write_text

PLAIN = "plain residual"
ROUTINGS = {
    PLAIN: RoutingConfig(kind="residual"),
    "DAR static+t, S = 4": RoutingConfig(chunk_size=4),
    "DAR static+t, dense": RoutingConfig(chunk_size=1),
    "DAR dynamic, S = 4": RoutingConfig(query="dynamic", chunk_size=4),
}


def small(depth: int, dim: int, heads: int) -> SiTConfig:
    return SiTConfig(28, 7, 1, dim, depth, heads, 10, gelu="none")


@dataclass(frozen=True)
class Case:
    """A model and how many samples it is given at once."""

    config: SiTConfig
    batch_size: int
    dtype: torch.dtype = torch.float32


CASES = {
    "cpu": {
        "6 blocks x 128": Case(small(6, 128, 4), 64),
        "16 blocks x 96 (shipped)": Case(small(16, 96, 3), 64),
        "24 blocks x 64": Case(small(24, 64, 2), 64),
    },
    "cuda": {"SiT-XL/2, 32 x 32 x 4 latents": Case(preset("SiT-XL/2"), 64, torch.bfloat16)},
}


class Arm:
    """One model with its optimizer."""

    def __init__(self, case: Case, routing: RoutingConfig, backend: str, compiled: bool, device: str) -> None:
        self.config = replace(case.config, routing=routing)
        torch.manual_seed(0)
        self.model = SiT(self.config).to(device)
        with torch.no_grad():  # away from the zeros of initialisation, where half of the work would be trivial
            for parameter in self.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        if routing.kind != "residual":
            self.model.routing.backend = backend  # pyright: ignore[reportArgumentType]
        self.call = torch.compile(self.model) if compiled else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), fused=True)
        self.device = device
        self.dtype = case.dtype
        self.x = torch.randn(case.batch_size, *self.model.sample_shape, device=device)
        self.t = torch.rand(case.batch_size, device=device)
        self.y = torch.randint(self.model.null_label, (case.batch_size,), device=device)

    def train(self) -> None:
        """Forward, backward and AdamW."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.call(self.x, self.t, self.y).float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def sample(self) -> None:
        """Four evaluations, at the student's timesteps."""
        x = self.x
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            for t in (1.0, 0.75, 0.5, 0.25):
                x = x - 0.25 * self.call(x, torch.full_like(self.t, t), self.y)

    def peak_bytes(self) -> int | None:
        """Of a training step, on a GPU."""
        if not is_cuda(self.device):
            return None
        torch.cuda.reset_peak_memory_stats()
        self.train()
        return torch.cuda.max_memory_allocated()


def arms_of(case: Case, device: str) -> dict[str, Callable[[], Arm]]:
    made: dict[str, Callable[[], Arm]] = {}
    for name, routing in ROUTINGS.items():
        backends = ("torch",) if not is_cuda(device) or routing.kind == "residual" else ("torch", "triton")
        for backend in backends:
            for compiled in (False, True) if is_cuda(device) else (False,):
                label = ", ".join([name, *[f"{backend} path"] * (len(backends) > 1), *["compiled"] * compiled])

                def make(routing: RoutingConfig = routing, backend: str = backend, compiled: bool = compiled) -> Arm:
                    return Arm(case, routing, backend, compiled, device)

                made[label] = make
    return made


def measure(
    name: str, case: Case, args: argparse.Namespace, done: Callable[[list[list[str]]], None]
) -> list[list[str]]:
    """Rows of the table; `done` is told of them as they come."""
    makers = {
        label: make for label, make in arms_of(case, args.device).items() if label == PLAIN or args.arms.search(label)
    }
    groups = [[label] for label in makers] if is_cuda(args.device) else [list(makers)]
    rows: list[list[str]] = []
    plain: Timed | None = None
    for labels in groups:
        timed = unless_out_of_memory(partial(time_arms, {label: makers[label] for label in labels}, args)) or {}
        plain = timed.get(PLAIN, plain)
        for label in labels:
            found = timed.get(label)
            cells = ["out of memory", "", "", "", ""] if found is None else found.cells(plain)
            rows.append([name, label, *cells])
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
        done(rows)
    return rows


@dataclass
class Timed:
    """Seconds of training steps and samples, and a step's peak of memory."""

    steps: list[float]
    samples: list[float]
    peak: int | None

    def cells(self, plain: Timed | None) -> list[str]:
        """With ratios to the plain model, where that was timed."""
        peak = "not measured" if self.peak is None else f"{self.peak / 2**30:.1f} GiB"
        step = ratio(self.steps, plain.steps) if plain else ""
        sample = ratio(self.samples, plain.samples) if plain else ""
        return [milliseconds(self.steps), step, peak, milliseconds(self.samples), sample]


def ratio(seconds: list[float], others: list[float]) -> str:
    return f"{statistics.median(seconds) / statistics.median(others):.2f}"


def time_arms(makers: dict[str, Callable[[], Arm]], args: argparse.Namespace) -> dict[str, Timed]:
    """In turn; nothing of them is left when it returns, so that the next ones' peak is their own."""
    arms = {label: make() for label, make in makers.items()}
    steps = time_in_turn({label: arm.train for label, arm in arms.items()}, args.repeats, args.device)
    samples = time_in_turn({label: arm.sample for label, arm in arms.items()}, args.repeats, args.device)
    return {label: Timed(steps[label], samples[label], arm.peak_bytes()) for label, arm in arms.items()}


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 20, "cpu": 20})
    parser.add_argument("--batch-size", type=int, help="samples per step (64)")
    parser.add_argument("--output", type=Path, help="also write the table here, anew after each arm")
    args = parsed(parser)
    header = ["model", "routing", "training step, ms", "against plain", "peak", "4-step sample, ms", "against plain"]
    earlier: list[list[str]] = []

    def text_of(rows: list[list[str]]) -> str:
        return (
            f"# Routing in a model\n\n{setup(args.device)}; batch {args.batch_size or 64}, {args.repeats} repeats; "
            "median [quartiles]. A training step is forward, backward and AdamW; a sample is four evaluations of the "
            f"batch.\n\n{table(header, rows)}\n"
        )

    def done(rows: list[list[str]]) -> None:
        if args.output:
            write_text(args.output, text_of(earlier + rows))

    for name, case in CASES[args.device].items():
        case = case if args.batch_size is None else replace(case, batch_size=args.batch_size)
        earlier += measure(name, case, args, done)
    print(text_of(earlier))


if __name__ == "__main__":
    main()
