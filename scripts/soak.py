"""A long job in small: does a run of hours keep its memory, its files and its word about the time left?

    nice -n 5 python scripts/soak.py --minutes 60 --output benchmarks/soak.md

The quickstart's updates, with looks at the student, grids and checkpoints, in a process of its own and in three parts:
a minute that tells how many updates fill the time, the run up to a random moment at which it gets SIGTERM, and the rest
of it with --resume. Memory, threads, open files and the run's folder are sampled all along. At the end each promise is
held against the samples; exit code 1 where one is broken. The record is a page of Markdown with a curve beside it.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

import psutil
from bench_tools import setup, table
from matplotlib.figure import Figure

from distill.files import write_bytes, write_text
from distill.report.style import png
from distill.training.checkpoint import checkpoints
from distill.training.run_log import read_log

KEEP, EVERY, LOG_EVERY = 3, 25, 5
SETTINGS = (
    f"train.keep={KEEP}",
    f"train.save_every={EVERY}",
    f"train.grid_every={EVERY}",
    f"train.log_every={LOG_EVERY}",
    "evaluate.num_images=0",
)
FIRST = 50  # updates of the part that tells the rate
NUM_SAMPLES = 720  # over the whole time
FEWEST = 1000  # updates of a part whose curves are judged; the heap takes some hundred to reach its size
FLAT = 0.01  # of memory and bytes, last quarter against the second
SLACK_S = 2.0  # of a clock that prints whole seconds
ESTIMATE = 0.5  # how far the time left may be off, of what was left: other work on the machine comes and goes
STOP = (0.25, 0.4)  # of the time, between which it is stopped
MOST = 0.8  # of the time, for which the part before has updates; more may follow, fewer not
STOPPED = 75
LINE = re.compile(r"step (\d+)/(\d+)  .*?(\d+) s(?:, (-?\d+) s left)?$")


@dataclass(frozen=True)
class Sample:
    """at: seconds since the part began. memory: resident bytes, of the process and its children, as are the others;
        without those of files, libraries above all, which a machine takes away and brings back as it likes.

    files, bytes: of the run's folder without its grids and its log, which grow with the updates. checkpoints: the whole
        ones.
    """

    at: float
    memory: int
    open_files: int
    threads: int
    files: int
    bytes: int
    checkpoints: int


@dataclass(frozen=True)
class Line:
    """A line of progress. at: seconds since the part began, at which it arrived; elapsed, left: what it says."""

    at: float
    step: int
    steps: int
    elapsed: float
    left: float | None


@dataclass
class Part:
    """What one process did. code: its exit code, and expected which it should have."""

    name: str
    expected: int
    code: int = -1
    samples: list[Sample] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Verdict:
    promise: str
    found: str
    kept: bool


CURVES: dict[str, tuple[Callable[[Sample], int], int, float]] = {
    "memory, MiB": (lambda sample: sample.memory, 2**20, FLAT),
    "folder, MiB": (lambda sample: sample.bytes, 2**20, FLAT),
    "open files": (lambda sample: sample.open_files, 1, 0),
    "threads": (lambda sample: sample.threads, 1, 0),
    "files in the folder": (lambda sample: sample.files, 1, 0),
}
"""By name: the value, its unit, and by what share it may grow."""


def parsed_line(text: str, at: float) -> Line | None:
    found = LINE.search(text)
    if found is None:
        return None
    step, steps, elapsed, left = found.groups()
    return Line(at, int(step), int(steps), float(elapsed), None if left is None else float(left))


def quarters(samples: Sequence[Sample]) -> list[Sequence[Sample]]:
    n = len(samples)
    return [samples[i * n // 4 : (i + 1) * n // 4] for i in range(4)]


def judge(parts: Sequence[Part]) -> list[Verdict]:
    """What every part promises, and the curves of those that are long enough to have one."""
    codes = [Verdict(f"{p.name}: exit code {p.expected}", str(p.code), p.code == p.expected) for p in parts]
    long = [part for part in parts if part.lines and part.lines[-1].step - part.lines[0].step >= FEWEST]
    enough = Verdict(f"a part of {FEWEST} updates at least, to have curves", str(len(long)), bool(long))
    curves = [verdict for part in long for verdict in judge_curves(part)]
    return [*codes, enough, *curves, *judge_progress(parts)]


def judge_curves(part: Part) -> list[Verdict]:
    """Nothing grows from the second quarter to the last, of which medians are compared; the first is the warm-up."""
    _, second, _, last = quarters(part.samples)
    verdicts = []
    for name, (value, unit, slack) in CURVES.items():
        before, after = median(map(value, second)) / unit, median(map(value, last)) / unit
        promise = f"{part.name}: {name} flat to {slack:.0%}" if slack else f"{part.name}: no more {name}"
        verdicts.append(Verdict(promise, f"{before:.7g}, then {after:.7g}", after <= before * (1 + slack)))
    most = max(sample.checkpoints for sample in part.samples)
    # The newest is whole before the oldest goes.
    return [*verdicts, Verdict(f"{part.name}: at most {KEEP} + 1 checkpoints", str(most), most <= KEEP + 1)]


def judge_progress(parts: Sequence[Part]) -> list[Verdict]:
    """What the lines say of the time, against the clock."""
    if not all(part.lines for part in parts):
        return [Verdict("every part tells its progress", ", ".join(str(len(part.lines)) for part in parts), False)]
    lines = [line for part in parts for line in part.lines]
    last, rest = lines[-1], parts[-1].lines
    # A line is printed after the look that follows its update, which its time is without.
    between = [[line for line in part.lines if line.step % EVERY and line.step != line.steps] for part in parts]
    off = max(
        (abs((line.elapsed - one[0].elapsed) - (line.at - one[0].at)) for one in between for line in one), default=0.0
    )
    back = min(later.elapsed - sooner.elapsed for sooner, later in pairwise(lines))
    halfway = rest[len(rest) // 2]
    left, was_left = halfway.left or 0.0, last.at - halfway.at
    return [
        Verdict("the last line is of the last update", f"{last.step} of {last.steps}", last.step == last.steps),
        Verdict("with nothing left", f"{last.left} s left", last.left is not None and abs(last.left) <= 1),
        Verdict("elapsed time is the clock's", f"{off:.1f} s off", off <= SLACK_S + FLAT * last.elapsed),
        Verdict("and goes on where a run is resumed", f"{back:+.0f} s at the least", back >= 0),
        Verdict(
            f"halfway the time left is right to {ESTIMATE:.0%}",
            f"{left:.0f} s said, {was_left:.0f} s taken",
            abs(left - was_left) <= ESTIMATE * was_left + SLACK_S,
        ),
    ]


def judge_folder(folder: Path, steps: int) -> list[Verdict]:
    """Of a run that is done: checkpoints by `keep`, a grid for each look, a record for each logged update."""
    logged = [int(record["step"]) for record in read_log(folder)]
    due = {step for step in range(1, steps + 1) if step % LOG_EVERY == 0} | {1}
    grids = len(list((folder / "grids").glob("*.png")))
    looks = -(-steps // EVERY)
    left = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    kept = len(checkpoints(folder))
    return [
        Verdict(f"{KEEP} checkpoints at the end", str(kept), kept == KEEP),
        Verdict(f"{looks} grids, one a look", str(grids), grids == looks),
        Verdict(
            "a record of each logged update, once and in order",
            f"{len(logged)} of {steps} updates",
            logged == sorted(due | {steps}),
        ),
        Verdict("nothing half written is left", ", ".join(left) or "nothing", not left),
    ]


def sampled(process: psutil.Process, folder: Path, began: float) -> Sample | None:
    """None where the process has just ended."""
    try:
        family = [process, *process.children(recursive=True)]
        memory, opened, threads = (
            sum(call(one) for one in family)
            for call in (own_memory, psutil.Process.num_fds, psutil.Process.num_threads)
        )
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
    sizes = [
        size
        for path in folder.rglob("*")
        if path.parent.name != "grids" and path.name != "metrics.jsonl" and (size := size_of(path)) is not None
    ]
    now = time.monotonic() - began
    return Sample(now, memory, opened, threads, len(sizes), sum(sizes), len(checkpoints(folder)))


def own_memory(process: psutil.Process) -> int:
    info = process.memory_info()
    return info.rss - getattr(info, "shared", 0)  # Linux tells it


def size_of(path: Path) -> int | None:
    """Bytes of a file; None of what is none, or is gone by now."""
    try:
        return path.stat().st_size if path.is_file() else None
    except FileNotFoundError:
        return None


def run_part(name: str, folder: Path, arguments: Sequence[str], interval: float, stop_at: float | None = None) -> Part:
    """Run a process to its end, or send it SIGTERM after `stop_at` seconds, and sample it every `interval` seconds."""
    part = Part(name, 0 if stop_at is None else STOPPED)
    command = [sys.executable, "-m", "distill", "run", "quickstart", f"output={folder}", *SETTINGS, *arguments]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        reader = threading.Thread(target=read_lines, args=(process, part, began))
        reader.start()
        try:
            watched = psutil.Process(process.pid)
            while process.poll() is None:
                sample = sampled(watched, folder, began)
                part.samples += [sample] if sample else []
                if stop_at is not None and time.monotonic() - began >= stop_at:
                    process.send_signal(signal.SIGTERM)
                    stop_at = None
                time.sleep(interval)
        finally:
            process.terminate()
            reader.join()
    part.code = process.returncode
    print(f"{name}: exit code {part.code} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if part.code != part.expected:
        print("\n".join(part.said[-20:]), file=sys.stderr, flush=True)
    return part


def read_lines(process: subprocess.Popen[str], part: Part, began: float) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        part.said.append(text.rstrip())
        line = parsed_line(part.said[-1], time.monotonic() - began)
        part.lines += [line] if line else []


def soak(folder: Path, seconds: float, seed: int) -> tuple[list[Part], int]:
    """The three parts, or those before one that ended otherwise than it should. Returns: and the number of updates."""
    interval = seconds / NUM_SAMPLES
    parts = [run_part("first updates", folder, [f"train.steps={FIRST}"], interval)]
    if parts[0].code:
        return parts, FIRST
    steps = planned(parts[0], MOST * seconds)
    stop_at = seconds * random.Random(seed).uniform(*STOP)
    parts.append(run_part("to the stop", folder, [f"train.steps={steps}", "--resume"], interval, stop_at))
    if parts[1].code == STOPPED:
        steps = max(steps + 1, planned(parts[1], seconds - stop_at))
        parts.append(run_part("resumed", folder, [f"train.steps={steps}", "--resume"], interval))
    return parts, steps


def planned(part: Part, seconds: float) -> int:
    """The last update of a part that follows and takes so long, at the rate of this one."""
    first, last = part.lines[0], part.lines[-1]
    return last.step + round((last.step - first.step) / (last.at - first.at) * seconds)


def curve(parts: Sequence[Part]) -> bytes:
    """Memory and the folder over the time of all parts, as a PNG."""
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    memory, folder = figure.subplots(2, 1, sharex=True)
    began = 0.0
    for part in parts:
        minutes = [(began + sample.at) / 60 for sample in part.samples]
        memory.plot(minutes, [sample.memory / 2**20 for sample in part.samples], label=part.name)
        folder.plot(minutes, [sample.bytes / 2**20 for sample in part.samples])
        began += part.samples[-1].at if part.samples else 0
    memory.set(ylabel="memory, MiB", ylim=(0, None))
    folder.set(ylabel="folder, MiB", ylim=(0, None), xlabel="minutes")
    memory.legend(loc="lower right")
    return png(figure)


def record(parts: Sequence[Part], verdicts: Sequence[Verdict], picture: str) -> str:
    """The page: what was measured by quarter, what was promised, and what came of it."""
    rows = [
        [
            f"{part.name}, {number}",
            f"{(quarter[-1].at - quarter[0].at) / 60:.1f}",
            *(f"{median(map(value, quarter)) / unit:.7g}" for value, unit, _ in CURVES.values()),
        ]
        for part in parts
        for number, quarter in enumerate(quarters(part.samples), 1)
        if quarter
    ]
    updates = parts[-1].lines[-1].step if parts[-1].lines else 0
    judged = [[v.promise, v.found, "kept" if v.kept else "**broken**"] for v in verdicts]
    broken = sum(not verdict.kept for verdict in verdicts)
    return "\n\n".join(
        [
            "# A long job",
            setup("cpu") + ", other work on the machine",
            f"{updates} updates. Medians. The folder is without its grids (one a look) and its log.",
            table(["part, quarter", "minutes", *CURVES], rows),
            table(["promise", "found", ""], judged),
            f"Verdict: {f'{broken} broken' if broken else 'all kept'}.",
            f"![Memory and folder over time]({picture})\n",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="of training, about (60)")
    parser.add_argument("--seed", type=int, default=0, help="of the moment at which it is stopped (0)")
    parser.add_argument("--output", type=Path, default=Path("runs/soak.md"), help="the record; a PNG goes beside it")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it started ends with it
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "run"
        parts, steps = soak(folder, 60 * args.minutes, args.seed)
        verdicts = [*judge(parts), *judge_folder(folder, steps)]
    picture = args.output.with_suffix(".png")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(picture, curve(parts))
    write_text(args.output, record(parts, verdicts, picture.name))
    for verdict in verdicts:
        print(f"{'kept  ' if verdict.kept else 'BROKEN'}  {verdict.promise}: {verdict.found}")
    return 0 if all(verdict.kept for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
