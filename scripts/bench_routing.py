"""Routing alone: one router against N sources, and the trunk of a SiT whose sublayers do nothing.

    python scripts/bench_routing.py --output benchmarks/routing_cpu

Writes a table (.md) and a picture (.png) of latency and memory against N. On a GPU all arms run at the sizes of
SiT-XL/2, on a CPU the torch paths at small ones. Before an arm is timed, its mixture and gradients are held against
equation 5 in float64. Other packages' kernels (pip install fla-core liger-kernel fast-attnres) are measured where
they are installed. Forward passes are timed with gradients on, so that they keep what a backward pass needs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from bench_tools import (
    copy_bandwidth,
    default_device,
    facts,
    is_cuda,
    milliseconds,
    table,
    time_in_turn,
    version_of,
)
from rich.progress import track
from torch import Tensor

from dar import RoutingConfig, depth_route, depth_route_reference
from dar.routing.base import build_routing
from dar.routing.depth import DepthRouting, DepthStream
from dar.routing.mixers import Mixer, OperatorMixer, TapeMixer, TorchMixer, fused_trunk, torch_trunk
from dar.routing.queries import KnownQueries
from dar.routing.weighers import SoftmaxWeigher
from distill.files import write_bytes, write_text
from distill.report.style import dress, new_figure, png

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
GATE_TOKENS = 256
Router = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """What is measured on a device. trunk: sublayers, samples, tokens, width."""

    dtype: torch.dtype
    dim: int
    sources: tuple[int, ...]
    tokens: tuple[int, ...]
    trunk: tuple[int, int, int, int]


SIZES = {
    "cuda": Size(torch.bfloat16, 1152, (2, 8, 15, 29, 57), (4096, 16384, 65536), (56, 64, 256, 1152)),
    "cpu": Size(torch.float32, 384, (2, 8, 15, 29, 57), (1024,), (32, 64, 16, 96)),
}


def compiled_reference() -> Router:
    torch._dynamo.config.cache_size_limit = 64
    function = torch.compile(depth_route_reference, dynamic=False)
    return lambda sources, query: function(sources, query)[0]


def fla_core() -> Router:
    from fla.ops.attnres import fused_attnres  # pyright: ignore[reportMissingImports]

    def route(sources: list[Tensor], query: Tensor) -> Tensor:
        return fused_attnres(query.to(sources[0].dtype), sources, torch.ones_like(query), scale=len(query) ** -0.5)

    return route


def liger() -> Router:
    from liger_kernel.ops import LigerAttnResFunction  # pyright: ignore[reportMissingImports]

    def route(sources: list[Tensor], query: Tensor) -> Tensor:
        scaled = (query * len(query) ** -0.5).to(sources[0].dtype)
        return LigerAttnResFunction.apply(torch.stack(sources), scaled, torch.ones_like(scaled), 1e-6)

    return route


def fast_attnres() -> Router:
    from attnres import attnres  # pyright: ignore[reportMissingImports]

    return lambda sources, query: attnres(sources, query.to(sources[0].dtype), eps=1e-6, scale=len(query) ** -0.5)


PEERS = {"fla-core": fla_core, "liger-kernel": liger, "fast-attnres": fast_attnres}


def routers(device: str) -> dict[str, Router]:
    """All arms that can run here."""
    arms: dict[str, Router] = {
        "eager": lambda sources, query: depth_route_reference(sources, query)[0],
        "ours, torch": lambda sources, query: depth_route(sources, query, backend="torch"),
    }
    if is_cuda(device):
        arms["torch.compile of eager"] = compiled_reference()
        arms["ours, triton"] = lambda sources, query: depth_route(sources, query, backend="triton")
        arms |= {f"{name} {version_of(name)}": make() for name, make in PEERS.items() if version_of(name)}
    return arms


def gate(route: Router, sources: list[Tensor], query: Tensor) -> str | None:
    """What is wrong with an arm on the first tokens; None where it is right."""
    few = [source.detach()[:, :GATE_TOKENS].clone().requires_grad_() for source in sources]
    of_query = query.detach().clone().requires_grad_()
    wide = [source.detach().double().requires_grad_() for source in few]
    of_query_wide = query.detach().double().requires_grad_()
    mixture = route(few, of_query)
    expected, _ = depth_route_reference(wide, of_query_wide)
    upstream = torch.linspace(-1, 1, expected.numel(), device=expected.device).view_as(expected)
    mixture.backward(upstream.to(mixture.dtype))
    expected.backward(upstream.double())
    pairs = {"h": (mixture, expected), "dq": (of_query.grad, of_query_wide.grad)}
    pairs |= {f"dv_{i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(few, wide, strict=True))}
    for name, (got, right) in pairs.items():
        assert got is not None and right is not None
        error = float((got.detach().double() - right.detach()).norm() / right.detach().norm())
        if not error <= TOLERANCE[sources[0].dtype]:
            return f"{name} is off by {error:.1e}"
    return None


def kept_bytes(call: Callable[[], object], device: str) -> int:
    """What a forward pass keeps for the backward pass."""
    if is_cuda(device):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        output = call()
        kept = torch.cuda.memory_allocated() - before
        del output
        return kept
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = call()
    del output
    return sum(storages.values())


@dataclass
class Measured:
    """One arm at one N and number of tokens. kept: bytes beyond the sources."""

    arm: str
    num_sources: int
    tokens: int
    forward: list[float]
    backward: list[float]
    kept: int


def measure_router(size: Size, tokens: int, num: int, repeats: int, device: str) -> tuple[list[Measured], list[str]]:
    generator = torch.Generator(device).manual_seed(0)
    sources = [
        torch.randn(1, tokens, size.dim, generator=generator, device=device).to(size.dtype).requires_grad_()
        for _ in range(num)
    ]
    query = torch.randn(size.dim, generator=generator, device=device).requires_grad_()
    forwards, backwards, kept, notes = {}, {}, {}, []
    for name, route in routers(device).items():
        try:
            wrong = gate(route, sources, query)
        except Exception as error:  # another package's limits, whatever it raises
            if name.startswith("ours"):
                raise
            wrong = f"{type(error).__name__}: {str(error)[:200]}"
        if wrong is not None:
            if name.startswith("ours"):
                sys.exit(f"{name}, N = {num}: {wrong}; nothing was timed")
            notes.append(f"{name}, N = {num}: not timed, {wrong}")
            continue

        def forward(route: Router = route) -> Tensor:
            return route(sources, query)

        own = sum(source.untyped_storage().nbytes() for source in sources)
        whole = kept_bytes(forward, device)
        kept[name] = whole if is_cuda(device) else whole - own
        mixture = forward()
        upstream = torch.ones_like(mixture)

        def backward(mixture: Tensor = mixture, upstream: Tensor = upstream) -> None:
            torch.autograd.grad(mixture, [*sources, query], upstream, retain_graph=True)

        forwards[name], backwards[name] = forward, backward
    forward_seconds = time_in_turn(forwards, repeats, device)
    backward_seconds = time_in_turn(backwards, repeats, device)
    found = [Measured(n, num, tokens, forward_seconds[n], backward_seconds[n], kept[n]) for n in forwards]
    return found, notes


def router_table(found: list[Measured], size: Size, bandwidth: float) -> str:
    rows = []
    for m in found:
        unit = m.tokens * size.dim * torch.finfo(size.dtype).bits / 8
        share_forward = (m.num_sources + 1) * unit / statistics.median(m.forward) / bandwidth
        share_backward = 2 * (m.num_sources + 1) * unit / statistics.median(m.backward) / bandwidth
        rows.append([
            f"{m.tokens}", f"{m.num_sources}", m.arm, milliseconds(m.forward), f"{share_forward:.2f}",
            milliseconds(m.backward), f"{share_backward:.2f}", f"{m.kept / 2**20:.1f}",
        ])  # fmt: skip
    header = ["tokens", "N", "arm", "forward, ms", "of copy", "backward, ms", "of copy", "kept beside sources, MiB"]
    return table(header, rows)


def tape_units(routing: DepthRouting) -> tuple[int, int]:
    """Reads and writes of a (B, T, d) tensor by the tape, forward and backward, from its plan alone."""
    forward = backward = 0
    early_readers: dict[tuple[str, int], int] = {}
    sources: list[tuple[str, int]] = []
    for block in routing.blocks:
        readers = [reader for reader in block if len(routing.plan.sources_of(reader)) > 1]
        by_reader = [routing.plan.sources_of(reader) for reader in readers]
        early = [source for source in by_reader[0] if all(source in of_one for of_one in by_reader)]
        forward += len(early) + len(block)
        for of_one in by_reader:
            late = len(of_one) - len(early)
            forward += 1 + late + 1
            backward += 2 + late  # dh and h for delta; dh again for each source that is pulled alone
        for source in early:
            early_readers[source] = early_readers.get(source, 0) + len(readers)
        sources += [s for of_one in by_reader for s in of_one]
    backward += sum(early_readers.values()) // 2  # in twos
    backward += 2 * len(set(sources))  # v and dv
    return forward, backward


FUSED_TAPE = "tape: two phases, pulled"


def mixers(weigher: SoftmaxWeigher, routing: DepthRouting, batch: int, device: str) -> dict[str, Callable[[], Mixer]]:
    arms: dict[str, Callable[[], Mixer]] = {"torch, reader by reader": lambda: TorchMixer(weigher)}
    if is_cuda(device):
        arms["one pass per reader"] = lambda: OperatorMixer(weigher)
    if isinstance(weigher.scorer, KnownQueries):
        queries, readers = weigher.scorer, routing.num_readers
        arms["torch, tape"] = lambda: TapeMixer(weigher, torch_trunk(queries, batch), readers)
        if is_cuda(device):
            arms[FUSED_TAPE] = lambda: TapeMixer(weigher, fused_trunk(queries, routing.blocks), readers)
    return arms


TRUNKS = {
    "dense": RoutingConfig(chunk_size=1),
    "S = 4": RoutingConfig(chunk_size=4),
    "S = 4, dynamic": RoutingConfig(chunk_size=4, query="dynamic"),
}


def measure_trunk(size: Size, repeats: int, device: str) -> str:
    """Every sublayer gives back what it reads: what is left is routing. Plain: x + x, as often."""
    sublayers, batch, tokens, dim = size.trunk
    x = torch.randn(batch, tokens, dim, device=device).to(size.dtype).requires_grad_()
    embedding = torch.randn(batch, dim, device=device)
    steps: dict[str, Callable[[], Tensor]] = {}
    units: dict[str, str] = {}

    def plain() -> Tensor:
        h = x
        for _ in range(sublayers):
            h = torch.add(h, h, alpha=1e-3)
        return h

    steps["plain residual"] = plain
    for name, config in TRUNKS.items():
        routing = build_routing(config, sublayers, dim).to(device)
        assert isinstance(routing, DepthRouting)
        for parameter in routing.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        weigher = routing.weigher(embedding)
        assert isinstance(weigher, SoftmaxWeigher)
        for arm in mixers(weigher, routing, batch, device):

            def run(config: DepthRouting = routing, arm: str = arm) -> Tensor:
                weigher = config.weigher(embedding)
                assert isinstance(weigher, SoftmaxWeigher)
                stream = DepthStream(config, config.history(x), mixers(weigher, config, batch, device)[arm]())
                for _ in range(sublayers):
                    stream.write(stream.read())
                return stream.read()

            steps[f"{name}, {arm}"] = run
            if arm == FUSED_TAPE:
                forward, backward = tape_units(routing)
                units[f"{name}, {arm}"] = f"{forward} + {backward}"
    outputs = {name: step() for name, step in steps.items()}
    for name in TRUNKS:
        arms = [output for arm, output in outputs.items() if arm.startswith(f"{name},")]
        for other in arms[1:]:
            error = float((other - arms[0]).detach().norm() / arms[0].detach().norm())
            if not error <= TOLERANCE[size.dtype]:
                sys.exit(f"trunk {name}: the arms differ by {error:.1e}; nothing was timed")
    del outputs
    forwards = time_in_turn(dict(steps), repeats, device)
    both = time_in_turn({name: _with_backward(step) for name, step in steps.items()}, repeats, device)
    rows = [
        [name, milliseconds(forwards[name]), milliseconds(both[name]), units.get(name, "")] for name in steps
    ]  # fmt: skip
    header = ["trunk", "forward, ms", "forward and backward, ms", "U, forward + backward"]
    return (
        f"Trunk: {sublayers} sublayers that give back what they read, {batch} x {tokens} tokens, d = {dim}. "
        "U: reads and writes of one (B, T, d) tensor, from the plan.\n\n" + table(header, rows)
    )


def _with_backward(step: Callable[[], Tensor]) -> Callable[[], None]:
    return lambda: step().sum().backward()


def draw(found: list[Measured], path: Path) -> None:
    """Latency and memory against N, at the first number of tokens."""
    tokens = found[0].tokens
    numbers = sorted({m.num_sources for m in found})
    panels: dict[str, Callable[[Measured], float]] = {
        "forward, ms": lambda m: 1e3 * statistics.median(m.forward),
        "backward, ms": lambda m: 1e3 * statistics.median(m.backward),
        "kept beside the sources, MiB": lambda m: m.kept / 2**20,
    }
    figure = new_figure(11, 3.6)
    for axis, (title, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for arm in dict.fromkeys(m.arm for m in found):
            of_arm = [m for m in found if m.arm == arm and m.tokens == tokens]
            axis.plot([m.num_sources for m in of_arm], [value(m) for m in of_arm], marker="o", ms=4, label=arm)
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(numbers, [str(num) for num in numbers])
        axis.minorticks_off()
        dress(axis, x=f"sources N, of {tokens} tokens", title=title)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    write_bytes(path, png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=default_device(), choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, help="of everything that is timed (GPU 50, CPU 10)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--output", type=Path, help="write OUTPUT.md and OUTPUT.png")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    size = SIZES[args.device]
    repeats = args.repeats or (50 if is_cuda(args.device) else 10)
    bandwidth = copy_bandwidth(args.device)
    found: list[Measured] = []
    notes: list[str] = []
    cases = [(tokens, num) for tokens in size.tokens for num in size.sources]
    for tokens, num in track(cases, description="one router"):
        measured, remarks = measure_router(size, tokens, num, repeats, args.device)
        found += measured
        notes += remarks
    parts = [
        "# Routing alone",
        f"{facts(args.device)}; {repeats} repeats, arms in turn; median [quartiles]. "
        f'Copy bandwidth measured in the same run: {bandwidth / 1e9:.1f} GB/s; "of copy": the least bytes that an '
        "arm could move, over its time, over that bandwidth.",
        f"One router, d = {size.dim}, {str(size.dtype).removeprefix('torch.')}:",
        router_table(found, size, bandwidth),
        *notes,
        measure_trunk(size, repeats, args.device),
    ]
    if not is_cuda(args.device):
        parts.append("The fused kernels need a GPU: not measured.")
    text = "\n\n".join(parts) + "\n"
    print(text)
    if args.output:
        write_text(args.output.with_suffix(".md"), text)
        draw(found, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
