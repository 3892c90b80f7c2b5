"""Four evaluations of a student, launched kernel by kernel and as CUDA graphs: plain residual beside DAR.

    python scripts/bench_sampler.py --output benchmarks/sampler_gpu.md

It draws through `distill.sampling`, as `sample` does; models are random, under bfloat16 autocast on a GPU.
GPU: SiT-XL/2 on latents at 1, 16 and 64 samples; CPU: the shipped teacher's shape, without graphs.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from bench_tools import is_cuda, milliseconds, parsed, parser_of, setup, table, time_in_turn
from torch import Tensor

from dar import RoutingConfig, SiT, SiTConfig, preset
from distill.files import write_text
from distill.models.launching import EAGER_VARIABLE
from distill.sampling import Sampler, few_step_sampler, in_precision
from distill.sampling.schedules import t_grid

SHAPES = {"cpu": SiTConfig(28, 7, 1, 96, 16, 3, 10, gelu="none"), "cuda": preset("SiT-XL/2")}
ROUTINGS = {"plain": RoutingConfig(kind="residual"), "DAR, S = 4": RoutingConfig(chunk_size=4)}
NUM_SAMPLES = {"cpu": (1, 16), "cuda": (1, 16, 64)}
STEPS = 4


def sampler_of(routing: RoutingConfig, device: str) -> Sampler[SiT]:
    model = SiT(replace(SHAPES[device], routing=routing)).to(device).eval().requires_grad_(False)
    sampler = few_step_sampler("student", model, t_grid(STEPS)[:-1].to(device))
    return in_precision(sampler, "bf16" if is_cuda(device) else "no")


@torch.no_grad()
def draw(sampler: Sampler[SiT], noise: Tensor, y: Tensor, launch: str) -> Tensor:
    os.environ[EAGER_VARIABLE] = "1" if launch == "eager" else ""
    return sampler.draw(noise, y)


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 20, "cpu": 10})
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    samplers = {name: sampler_of(routing, args.device) for name, routing in ROUTINGS.items()}
    launches = ["eager", "graph"] if is_cuda(args.device) else ["eager"]
    rows = []
    for num in NUM_SAMPLES[args.device]:
        noise = torch.randn(STEPS, num, *samplers["plain"].model.sample_shape, device=args.device)
        y = torch.zeros(num, dtype=torch.long, device=args.device)
        arms: dict[tuple[str, str], Callable[[], Tensor]] = {
            (launch, name): partial(draw, sampler, noise, y, launch)
            for launch in launches
            for name, sampler in samplers.items()
        }
        found = time_in_turn({", ".join(arm): call for arm, call in arms.items()}, args.repeats, args.device)
        for launch in launches:
            times = [found[f"{launch}, {name}"] for name in ROUTINGS]
            plain, routed = (statistics.median(seconds) for seconds in times)
            rows.append([str(num), launch, *map(milliseconds, times), f"{routed / plain:.3f}"])
    header = ["samples", "launch", *(f"{name}, ms" for name in ROUTINGS), "DAR / plain"]
    shape = SHAPES[args.device]
    text = (
        f"# {STEPS} evaluations of a student\n\n{setup(args.device)}; {shape.depth} blocks x {shape.hidden_size}, "
        f"{args.repeats} repeats; median [quartiles].\n\n{table(header, rows)}\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
