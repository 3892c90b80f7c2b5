"""One router against N sources.

    python scripts/bench_routing.py --output benchmarks/routing_cpu

Writes a table (.md) and a picture (.png) of latency and memory against N. On a GPU all arms run at the sizes of
SiT-XL/2, on a CPU the torch paths at small ones. Before an arm is timed, its mixture and gradients are held against
equation 5 in float64. Other packages' kernels (pip install fla-core liger-kernel fast-attnres flash-attn-res) are
measured where they are installed; the last one takes powers of two only (--dim 1024). Forward passes are timed with
gradients on, so that they keep what a backward pass needs.

On a GPU torch.compile compiles anew for every N and number of tokens; --tokens and --arms cut the work into pieces.
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
from bench_tools import (
    TOLERANCE,
    copy_bandwidth,
    is_cuda,
    milliseconds,
    parsed,
    parser_of,
    setup,
    table,
    time_in_turn,
    unless_out_of_memory,
    version_of,
)
from rich.progress import track
from torch import Tensor

from dar import depth_route, depth_route_reference
from distill.files import write_bytes, write_text
from distill.report.style import new_figure, png, style_axes

GATE_TOKENS = 256
Router = Callable[[list[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Size:
    """What is measured on a device."""

    dtype: torch.dtype
    dim: int
    sources: tuple[int, ...]
    tokens: tuple[int, ...]


SIZES = {
    "cuda": Size(torch.bfloat16, 1152, (2, 8, 15, 29, 57), (4096, 16384, 65536)),
    "cpu": Size(torch.float32, 384, (2, 8, 15, 29, 57), (1024,)),
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


def flash_attn_res() -> Router:
    """Its first phase, of one query over all sources."""
    from flash_attn_res import phase_1_batched_attention_triton_op as phase_1  # pyright: ignore[reportMissingImports]

    def route(sources: list[Tensor], query: Tensor) -> Tensor:
        scaled = (query * len(query) ** -0.5).to(sources[0].dtype)
        mixtures, _ = phase_1(torch.stack(sources), scaled[None], 1e-6)
        return mixtures[0]

    return route


PEERS = {"fla-core": fla_core, "liger-kernel": liger, "fast-attnres": fast_attnres, "flash-attn-res": flash_attn_res}


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
    gated = [source.detach()[:, :GATE_TOKENS].clone().requires_grad_() for source in sources]
    of_query = query.detach().clone().requires_grad_()
    wide = [source.detach().double().requires_grad_() for source in gated]
    of_query_wide = query.detach().double().requires_grad_()
    mixture = route(gated, of_query)
    expected, _ = depth_route_reference(wide, of_query_wide)
    upstream = torch.linspace(-1, 1, expected.numel(), device=expected.device).view_as(expected)
    mixture.backward(upstream.to(mixture.dtype))
    expected.backward(upstream.double())
    pairs = {"h": (mixture, expected), "dq": (of_query.grad, of_query_wide.grad)}
    pairs |= {f"dv_{i}": (a.grad, b.grad) for i, (a, b) in enumerate(zip(gated, wide, strict=True))}
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


@dataclass
class Arm:
    """One router's calls, ready to be timed."""

    forward: Callable[[], Tensor]
    backward: Callable[[], object]
    kept: int


def arm_of(route: Router, sources: list[Tensor], query: Tensor, device: str) -> Arm:
    whole = kept_bytes(lambda: route(sources, query), device)
    own = 0 if is_cuda(device) else sum(source.untyped_storage().nbytes() for source in sources)
    mixture = route(sources, query)
    upstream = torch.ones_like(mixture)

    def backward() -> object:
        return torch.autograd.grad(mixture, [*sources, query], upstream, retain_graph=True)

    backward()  # whether there is memory for it
    return Arm(lambda: route(sources, query), backward, whole - own)


def refusal(name: str, route: Router, sources: list[Tensor], query: Tensor) -> str | None:
    """Why an arm is not timed; ours have to be right."""
    try:
        wrong = gate(route, sources, query)
    except Exception as error:  # another package's limits, whatever it raises
        if name.startswith("ours"):
            raise
        wrong = f"{type(error).__name__}: {str(error)[:200]}"
    if wrong is not None and name.startswith("ours"):
        sys.exit(f"{name}, N = {len(sources)}: {wrong}; nothing was timed")
    return wrong


def measure_router(size: Size, tokens: int, num: int, args: argparse.Namespace) -> tuple[list[Measured], list[str]]:
    """What was measured, and remarks on what was not."""
    device = args.device
    generator = torch.Generator(device).manual_seed(0)
    sources = [
        torch.randn(1, tokens, size.dim, generator=generator, device=device).to(size.dtype).requires_grad_()
        for _ in range(num)
    ]
    query = torch.randn(size.dim, generator=generator, device=device).requires_grad_()
    arms: dict[str, Arm] = {}
    notes = []
    for name, route in routers(device).items():
        if not args.arms.search(name):
            continue
        wrong = refusal(name, route, sources, query)
        arm = None if wrong else unless_out_of_memory(partial(arm_of, route, sources, query, device))
        if arm is None:
            notes.append(f"{name}, {tokens} tokens, N = {num}: not timed, {wrong or 'out of memory'}")
        else:
            arms[name] = arm
    forward = time_in_turn({name: arm.forward for name, arm in arms.items()}, args.repeats, device)
    backward = time_in_turn({name: arm.backward for name, arm in arms.items()}, args.repeats, device)
    return [Measured(name, num, tokens, forward[name], backward[name], arm.kept) for name, arm in arms.items()], notes


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
        style_axes(axis, x=f"sources N, of {tokens} tokens", title=title)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    write_bytes(path, png(figure))


def text_of(found: list[Measured], notes: list[str], size: Size, bandwidth: float, args: argparse.Namespace) -> str:
    parts = [
        "# One router",
        f"{setup(args.device)}; {args.repeats} repeats, arms in turn; median [quartiles]. "
        f"d = {size.dim}, {str(size.dtype).removeprefix('torch.')}. "
        f'Copy bandwidth measured in the same run: {bandwidth / 1e9:.1f} GB/s; "of copy": the least bytes that an '
        "arm could move, over its time, over that bandwidth.",
        router_table(found, size, bandwidth),
        *notes,
    ]
    if not is_cuda(args.device):
        parts.append("The fused kernels need a GPU: not measured here.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 50, "cpu": 10})
    parser.add_argument("--tokens", type=int, nargs="+", help="(all of the device's)")
    parser.add_argument("--dim", type=int, help="width of a source (the device's)")
    parser.add_argument("--output", type=Path, help="write OUTPUT.md and OUTPUT.png, anew after each size")
    args = parsed(parser)
    size = replace(SIZES[args.device], dim=args.dim or SIZES[args.device].dim)
    bandwidth = copy_bandwidth(args.device)
    found: list[Measured] = []
    notes: list[str] = []
    cases = [(tokens, num) for tokens in args.tokens or size.tokens for num in size.sources]
    for tokens, num in track(cases, description="one router"):
        measured, remarks = measure_router(size, tokens, num, args)
        found += measured
        notes += remarks
        if args.output:
            write_text(args.output.with_suffix(".md"), text_of(found, notes, size, bandwidth, args))
    if not found:
        sys.exit("\n".join(notes or [f"no arm's name has {args.arms.pattern!r} in it; nothing was timed"]))
    print(text_of(found, notes, size, bandwidth, args))
    if args.output:
        draw(found, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
