"""All routers of a SiT whose sublayers do nothing: what is left is routing.

    python scripts/bench_trunk.py --output benchmarks/trunk_cpu.md

On a GPU at the size of SiT-XL/2 with 64 samples at 256 x 256, on a CPU at the shipped teacher's. Before anything is
timed the arms' outputs are held against each other.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from bench_tools import TOLERANCE, is_cuda, milliseconds, parsed, parser_of, setup, table, time_in_turn
from torch import Tensor

from dar import RoutingConfig
from dar.routing.base import build_routing
from dar.routing.depth import DepthRouting, DepthStream
from dar.routing.mixers import Mixer, OperatorMixer, TapeMixer, TorchMixer, fused_trunk, torch_trunk
from dar.routing.queries import KnownQueries
from dar.routing.weighers import SoftmaxWeigher
from distill.files import write_text

FUSED_TAPE = "tape: two phases, pulled"
TRUNKS = {
    "dense": RoutingConfig(chunk_size=1),
    "S = 4": RoutingConfig(chunk_size=4),
    "S = 4, dynamic": RoutingConfig(chunk_size=4, query="dynamic"),
}


@dataclass(frozen=True)
class Size:
    """Of a trunk, on a device."""

    dtype: torch.dtype
    sublayers: int
    batch: int
    tokens: int
    dim: int


SIZES = {"cuda": Size(torch.bfloat16, 56, 64, 256, 1152), "cpu": Size(torch.float32, 32, 64, 16, 96)}


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


class Trunk:
    """The routing of one configuration over sublayers that give back what they read."""

    def __init__(self, config: RoutingConfig, size: Size, device: str) -> None:
        routing = build_routing(config, size.sublayers, size.dim).to(device)
        assert isinstance(routing, DepthRouting)
        for parameter in routing.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.routing, self.size, self.device = routing, size, device
        self.embedding = torch.randn(size.batch, size.dim, device=device)

    def mixers(self) -> dict[str, Callable[[], Mixer]]:
        """For one forward pass."""
        weigher = self.routing.weigher(self.embedding)
        assert isinstance(weigher, SoftmaxWeigher)
        return mixers(weigher, self.routing, self.size.batch, self.device)

    def run(self, arm: str, x: Tensor) -> Tensor:
        with torch.autocast(self.device, x.dtype, enabled=x.dtype != torch.float32):
            stream = DepthStream(self.routing, self.routing.history(x), self.mixers()[arm]())
            for _ in range(self.size.sublayers):
                stream.write(stream.read())
            return stream.read()


def plain(size: Size, x: Tensor) -> Tensor:
    """x + x, as often as there are sublayers."""
    for _ in range(size.sublayers):
        x = torch.add(x, x, alpha=1e-3)
    return x


def check(steps: dict[str, Callable[[Tensor], Tensor]], x: Tensor) -> None:
    """Exit where two arms of a trunk do not agree: in float32, as depth makes much of bfloat16's roundings."""
    for trunk in TRUNKS:
        names = [name for name in steps if name.startswith(f"{trunk}: ")]
        first = steps[names[0]](x) if names else None
        for name in names[1:]:
            assert first is not None
            error = float((steps[name](x) - first).norm() / first.norm())
            if not error <= TOLERANCE[torch.float32]:
                sys.exit(f"{name} is off {names[0]} by {error:.1e}; nothing was timed")


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 50, "cpu": 10})
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    size = SIZES[args.device]
    x = torch.randn(size.batch, size.tokens, size.dim, device=args.device).to(size.dtype).requires_grad_()
    arms: dict[str, Callable[[Tensor], Tensor]] = {"plain residual": partial(plain, size)}
    units: dict[str, str] = {}
    for name, config in TRUNKS.items():
        trunk = Trunk(config, size, args.device)
        for arm in trunk.mixers():
            label = f"{name}: {arm}"
            if args.arms.search(label):
                arms[label] = partial(trunk.run, arm)
            if arm == FUSED_TAPE:
                units[label] = "{} + {}".format(*tape_units(trunk.routing))
    with torch.no_grad():
        check(arms, x.float())
    forward, both = {}, {}
    for name, arm in arms.items():
        with torch.no_grad():
            forward |= timed(name, partial(arm, x), args)
        both |= timed(name, partial(forward_and_back, arm, x), args)
    rows = [[name, milliseconds(forward[name]), milliseconds(both[name]), units.get(name, "")] for name in arms]
    header = ["routing", "forward, ms", "forward and backward, ms", "U, forward + backward"]
    graphs = ", of CUDA graphs" if is_cuda(args.device) else ""
    text = (
        f"# The routing of a model alone\n\n{setup(args.device)}; {args.repeats} repeats; median [quartiles]{graphs}. "
        f"{size.sublayers} sublayers that give back what they read, {size.batch} x {size.tokens} tokens, "
        f"d = {size.dim}, {str(size.dtype).removeprefix('torch.')}. U: reads and writes of one (B, T, d) tensor, from "
        f"the plan.\n\n{table(header, rows)}\n"
    )
    if not is_cuda(args.device):
        text += "\nThe fused kernels need a GPU: not measured here.\n"
    print(text)
    if args.output:
        write_text(args.output, text)


def forward_and_back(arm: Callable[[Tensor], Tensor], x: Tensor) -> None:
    arm(x).sum().backward()


def timed(name: str, call: Callable[[], object], args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds; on a GPU of a CUDA graph, in which launches cost next to nothing."""
    return time_in_turn({name: graph_of(call) if is_cuda(args.device) else call}, args.repeats, args.device)


def graph_of(call: Callable[[], object]) -> Callable[[], object]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


if __name__ == "__main__":
    main()
