"""Each fused kernel by itself, its launch hidden behind what the GPU is still busy with: what the kernel takes.

    python scripts/bench_kernels.py --output benchmarks/kernels_gpu.md

At the size of SiT-XL/2 with 64 samples at 256 x 256, bfloat16. In eager mode a single router is bound by its launches
(`bench_routing.py` times those, too). --warps and --stages try other settings than a kernel's own.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_tools import copy_bandwidth, is_cuda, milliseconds, parsed, parser_of, setup, table, time_in_turn
from torch import Tensor

from dar.kernels import table as settings
from dar.kernels.backward import route_backward
from dar.kernels.forward import State, begin, finish
from dar.kernels.pull import pull
from distill.files import write_text

SAMPLES, TOKENS, DIM, NUM_SOURCES, EARLY, LATE, SLOTS = 64, 256, 1152, 57, 28, 3, 4
BUSY_CYCLES = 400_000  # about 0.2 ms
SCALE, EPS = DIM**-0.5, 1e-6


def kernels(device: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """A call of each, and how many (B, T, d) tensors it reads and writes at least."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).bfloat16()

    def logits(num: int, width: int) -> Tensor:
        return torch.zeros(num, width, SAMPLES, TOKENS, device=device)

    sources = [draw(SAMPLES, TOKENS, DIM) for _ in range(NUM_SOURCES)]
    query, queries = torch.randn(DIM, device=device), torch.randn(EARLY, SAMPLES, DIM, device=device)
    all_logits, early_logits, late_logits = logits(NUM_SOURCES, 1), logits(EARLY, SLOTS), logits(LATE, 1)
    mixture, lse = finish(sources, query, all_logits, SCALE, EPS)
    kept, d_mixture = (mixture, all_logits.squeeze(1), lse), draw(SAMPLES, TOKENS, DIM)
    state = begin(sources[:EARLY], queries[:SLOTS], early_logits, SCALE, EPS)
    start = State(*(part[0] for part in state))
    of_readers = torch.zeros(EARLY, SAMPLES, TOKENS, device=device)
    narrow, d_mixtures = queries.bfloat16(), sources[-EARLY:]

    def pulled(num: int, per_call: int) -> Any:
        calls = [late_logits if per_call == 1 else early_logits] * (EARLY // per_call)
        return pull(
            sources[:num], d_mixtures, calls, narrow, of_readers, of_readers,
            first=0, position=0, per_call=per_call, scale=SCALE, eps=EPS,
        )  # fmt: skip

    return {
        f"one pass, N = {NUM_SOURCES}": (lambda: finish(sources, query, all_logits, SCALE, EPS), NUM_SOURCES + 1),
        f"first phase, N = {EARLY}, four readers": (
            lambda: begin(sources[:EARLY], queries[:SLOTS], early_logits, SCALE, EPS), EARLY + SLOTS,
        ),
        f"second phase, N = {LATE}": (
            lambda: finish(sources[:LATE], query, late_logits, SCALE, EPS, 1.0, start), LATE + 2,
        ),
        f"local backward, N = {NUM_SOURCES}": (
            lambda: route_backward(sources, query, kept, d_mixture, None, SCALE, EPS, 1.0), 2 * NUM_SOURCES + 2,
        ),
        f"pull of one source, {EARLY} readers": (lambda: pulled(1, 1), EARLY + 2),
        f"pull of two sources, {EARLY} readers": (lambda: pulled(2, SLOTS), EARLY + 4),
    }  # fmt: skip


def hidden(call: Callable[[], Any]) -> Callable[[], Any]:
    """`call`, launched while the GPU is busy: it is done with that when the launch has come through."""

    def launch() -> Any:
        torch.cuda._sleep(BUSY_CYCLES)
        return call()

    return launch


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 20, "cpu": 1})
    parser.add_argument("--warps", type=int, help="a program (its own)")
    parser.add_argument("--stages", type=int, help="rows in flight and the one at hand (its own)")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    if not is_cuda(args.device):
        sys.exit("the kernels' times need a GPU")
    if args.warps:
        settings.num_warps = lambda *_: args.warps
    if args.stages:
        settings.num_stages = lambda *_: args.stages
    bandwidth = copy_bandwidth(args.device)
    (asleep,) = time_in_turn({"": lambda: torch.cuda._sleep(BUSY_CYCLES)}, args.repeats, args.device).values()
    unit = SAMPLES * TOKENS * DIM * 2
    rows = []
    for name, (call, units) in kernels(args.device).items():
        if args.arms.search(name):
            (seconds,) = time_in_turn({name: hidden(call)}, args.repeats, args.device).values()
            seconds = [taken - statistics.median(asleep) for taken in seconds]
            share = units * unit / statistics.median(seconds) / bandwidth
            rows.append([name, milliseconds(seconds), f"{share:.2f}"])
    text = (
        f"# Each kernel by itself\n\n{setup(args.device)}; {args.repeats} repeats; median [quartiles]. {SAMPLES} x "
        f"{TOKENS} tokens, d = {DIM}, bfloat16; copy bandwidth in the same run {bandwidth / 1e9:.0f} GB/s.\n\n"
        f"{table(['kernel', 'ms', 'of copy'], rows)}\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
