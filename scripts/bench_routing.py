"""What routing costs per training step: the same SiT with the plain residual stream, DAR in chunks and DAR dense.

    python scripts/bench_routing.py --output benchmarks/routing_cpu.md

All arms of a depth take turns, step by step, in one process; medians and interquartile ranges are over their
steps. Before anything is timed, `depth_route` is held against its reference in float64.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from dar import RoutingConfig, SiT, SiTConfig, depth_route, depth_route_reference
from distill.files import write_text

ARMS = {
    "plain residual": RoutingConfig(kind="residual"),
    "DAR static+t, S = 4": RoutingConfig(chunk_size=4),
    "DAR static+t, dense": RoutingConfig(chunk_size=1),
    "DAR dynamic, S = 4": RoutingConfig(query="dynamic", chunk_size=4),
}
SHIPPED = (16, 96, 3)
SHAPES = {"6 blocks x 128": (6, 128, 4), "16 blocks x 96 (shipped)": SHIPPED, "24 blocks x 64": (24, 64, 2)}


@dataclass
class Arm:
    """One model, its optimizer and the seconds of its steps."""

    model: SiT
    optimizer: torch.optim.Optimizer
    seconds: list[float]

    def step(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> None:
        started = time.perf_counter()
        self.model(x, t, y).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if x.is_cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - started)


def check_correctness() -> None:
    """Refuse to time a wrong result."""
    torch.manual_seed(0)
    sources = [torch.randn(3, 5, 16, dtype=torch.float64) for _ in range(9)]
    query = torch.randn(3, 16, dtype=torch.float64)
    expected, _ = depth_route_reference(sources, query)
    error = (depth_route(sources, query) - expected).abs().max().item()
    if error > 1e-12:
        sys.exit(f"depth_route differs from its reference by {error:.2g}; nothing was timed")


def build(shape: tuple[int, int, int], routing: RoutingConfig, device: str) -> Arm:
    depth, dim, heads = shape
    config = SiTConfig(28, 7, 1, dim, depth, heads, 10, routing=routing, gelu="none")
    model = SiT(config).to(device)
    with torch.no_grad():  # away from the zeros of initialisation, where half of the work would be trivial
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return Arm(model, torch.optim.AdamW(model.parameters(), fused=True), [])


def measure(shape: tuple[int, int, int], batch_size: int, repeats: int, device: str) -> dict[str, list[float]]:
    arms = {name: build(shape, routing, device) for name, routing in ARMS.items()}
    x = torch.randn(batch_size, 1, 28, 28, device=device)
    t, y = torch.rand(batch_size, device=device), torch.randint(10, (batch_size,), device=device)
    for i in track(range(repeats + 2), description=str(shape)):
        for arm in arms.values():
            arm.step(x, t, y)
            if i < 2:
                arm.seconds.clear()  # warm-up
    return {name: arm.seconds for name, arm in arms.items()}


def report(results: dict[str, dict[str, list[float]]], args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    lines = [
        "# Routing per training step",
        "",
        f"`python scripts/bench_routing.py {' '.join(sys.argv[1:])}`, {time.strftime('%Y-%m-%d')}, {device}, "
        f"{platform.machine()}, torch {torch.__version__}; batch {args.batch_size}, {args.repeats} steps each, "
        "arms in turn; forward, backward and AdamW.",
        "",
        "| model | routing | ms per step, median | interquartile range | against plain |",
        "|---|---|---|---|---|",
    ]
    for shape, arms in results.items():
        plain = statistics.median(arms["plain residual"])
        for name, seconds in arms.items():
            low, middle, high = statistics.quantiles(seconds, n=4)
            lines.append(
                f"| {shape} | {name} | {1e3 * middle:.1f} | {1e3 * low:.1f} to {1e3 * high:.1f} "
                f"| {middle / plain:.2f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    check_correctness()
    results = {name: measure(shape, args.batch_size, args.repeats, args.device) for name, shape in SHAPES.items()}
    text = report(results, args)
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
