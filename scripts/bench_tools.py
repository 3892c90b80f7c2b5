"""What the benchmarks share: their options, arms that take turns, quartiles, the device and its copy bandwidth."""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from distill.allocator import keep_freed_memory

L2_BYTES = 256 * 2**20  # more than any L2 cache holds
WARM_UP = 2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # of a norm: how far arms may be from what is right
T = TypeVar("T")


def is_cuda(device: str) -> bool:
    return device.startswith("cuda")


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def parser_of(description: str | None, repeats: dict[str, int]) -> argparse.ArgumentParser:
    """The options that all share; `repeats`: the default by device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=default_device(), choices=("cpu", "cuda"))
    default = ", ".join(f"{number} on {device}" for device, number in repeats.items())
    parser.add_argument("--repeats", type=int, help=f"of everything that is timed ({default})")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    words = "only those whose name this regular expression is found in (all)"
    parser.add_argument("--arms", type=_pattern, default=re.compile(""), help=words)
    parser.set_defaults(default_repeats=repeats)
    return parser


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for; the process is set up for it."""
    args = parser.parse_args()
    args.repeats = args.repeats or args.default_repeats[args.device]
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    return args


def unless_out_of_memory(call: Callable[[], T]) -> T | None:
    """What `call` gives, or None where the device has not the memory for it."""
    try:
        return call()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def time_in_turn(arms: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of every call, after rounds that do not count; all arms take their turn in each round.

    On a GPU the L2 cache is overwritten before each call, and time is taken between events on its stream.
    """
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device=device) if is_cuda(device) else None
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(WARM_UP + repeats):
        for name, call in arms.items():
            taken = _on_cpu(call) if flush is None else _on_gpu(call, flush)
            if i >= WARM_UP:
                seconds[name].append(taken)
    return seconds


def _on_cpu(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _on_gpu(call: Callable[[], object], flush: torch.Tensor) -> float:
    flush.zero_()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def copy_bandwidth(device: str, repeats: int = 20) -> float:
    """Bytes per second, read and written, of copying 512 MiB (CPU: 64 MiB)."""
    source = torch.empty((512 if is_cuda(device) else 64) * 2**20, dtype=torch.int8, device=device).zero_()
    target = torch.empty_like(source)
    (seconds,) = time_in_turn({"copy": lambda: target.copy_(source)}, repeats, device).values()
    return 2 * source.numel() / statistics.median(seconds)


def milliseconds(seconds: Sequence[float]) -> str:
    """Median, and the interquartile range in brackets."""
    low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    digits = 3 if middle < 1e-2 else 1
    return f"{1e3 * middle:.{digits}f} [{1e3 * low:.{digits}f}, {1e3 * high:.{digits}f}]"


def processor() -> str:
    """The CPU's name where Linux tells it, else its architecture."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def setup(device: str) -> str:
    """The command, the date, the machine and the versions, as one line."""
    machine = torch.cuda.get_device_name() if is_cuda(device) else f"{processor()}, {torch.get_num_threads()} thread(s)"
    command = " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}, {machine}, torch {torch.__version__}, "
        f"triton {version_of('triton') or 'not installed'}"
    )


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
