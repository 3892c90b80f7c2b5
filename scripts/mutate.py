"""Do the tests see a fault? Small faults are put into the core, one at a time, and the tests that run that code judge.

    python scripts/mutate.py --sample 300 --seed 0 --output benchmarks/mutation.md
    python scripts/mutate.py --sample 300 --seed 0 --output benchmarks/mutation.md --again
    python scripts/mutate.py --only dar/chunks.py --output chunks.md

Faults are put into a copy of the tree. One process has torch imported and forks for each fault: it costs its tests
alone. Which tests enter which function is seen once for each file of tests, without faults, and is kept in
`.cache/mutate` until that file changes. A fault is judged by the tests that enter its function, up to the first red
one; first come those of the files that are nearest to it. Each judgement is also a line in a file beside --output: a
run that was ended goes on where it was, and --again judges the survivors anew. benchmarks/mutation_reasons.json says
why some may stay.

cosmic-ray would start a process, 3 s of torch, for each fault, and has one command of tests for all files; mutmut first
runs the whole suite in one process, and draws no samples.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
from mutants import Mutant, folder_of, mutants_of, sampled
from mutation_tests import SLOWEST_S, Tests, judge

ROOT = Path(__file__).parents[1]
CORE = ("dar", "distill/sampling", "distill/objectives", "distill/training", "distill/metrics", "distill/files")
LEFT_OUT = ("dar/kernels",)  # what runs on a GPU is tested on one
REASONS = "mutation_reasons.json"
WIDEST = 90  # letters of code in a cell
# Imported before all forks. Nothing of dar or distill: each fork reads those anew.
HEAVY = ("torch", "torchvision", "torch._dynamo", "accelerate", "diffusers", "transformers", "peft", "torchmetrics")
HEAVY += (
    "scipy.stats",
    "scipy.special",
    "scipy.ndimage",
    "skimage.feature",
    "rich.progress",
    "pywt",
    "lpips",
    "torch_fidelity",
    "matplotlib.pyplot",
    "omegaconf",
    "pytest",
)
KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"


def core_files(root: Path) -> list[str]:
    files = sorted(str(path.relative_to(root)) for folder in CORE for path in (root / folder).rglob("*.py"))
    return [file for file in files if not file.startswith(LEFT_OUT)]


def copied(root: Path, target: Path) -> None:
    """The tracked files as they are now, compiled so that a changed source is always seen."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((root / name).read_bytes())
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "dar", "distill"]
    subprocess.run(command, cwd=target, check=True)


def prepare(copy: Path, heavy: Sequence[str]) -> None:
    """This process, and those it forks, use the copy."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what it forked ends with it
    os.chdir(copy)
    os.environ |= {"PYTHONPATH": str(copy), "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "1", "TMPDIR": str(copy.parent)}
    tempfile.tempdir = str(copy.parent)
    sys.path.insert(0, str(copy))
    for name in heavy:
        importlib.import_module(name)
    gc.freeze()  # no fork looks through all of that for garbage


def judged(
    root: Path, copy: Path, chosen: Sequence[Mutant], record: Path, args: argparse.Namespace
) -> Iterator[Mutant]:
    """Each mutant, once its outcome is in `record`; those that have one there are not judged again."""
    known = read_record(record)
    tests = Tests(copy, root / ".cache" / "mutate")
    begin = time.monotonic()
    for number, mutant in enumerate(chosen):
        if mutant.name not in known:
            outcome = judge(copy, mutant, tests.that_enter(mutant, args.seconds, args.files))
            with record.open("a") as file:
                file.write(json.dumps({"name": mutant.name, "outcome": outcome}) + "\n")
            took = f"{(time.monotonic() - begin) / 60:.1f} min"
            print(f"{number + 1}/{len(chosen)} {took} {outcome}: {mutant.line} {mutant.name}", flush=True)
        yield mutant


def read_record(record: Path) -> dict[str, str]:
    """The last outcome of each mutant by name."""
    lines = map(json.loads, record.read_text().splitlines()) if record.exists() else ()
    return {line["name"]: line["outcome"] for line in lines}


def forget_survivors(record: Path) -> None:
    seen = {name: outcome for name, outcome in read_record(record).items() if outcome != SURVIVED}
    record.write_text("".join(json.dumps({"name": name, "outcome": outcome}) + "\n" for name, outcome in seen.items()))


def page(chosen: Sequence[Mutant], found: dict[str, str], reasons: dict[str, str], setup: str) -> str:
    """The record for people."""
    table = [
        "| folder | mutants | killed | timed out | survived | of them explained | share killed |",
        "|---|" + "---|" * 6,
    ]
    for folder in [*sorted({folder_of(mutant.path) for mutant in chosen}), "all"]:
        inside = [mutant for mutant in chosen if folder in ("all", folder_of(mutant.path))]
        count = Counter(found[mutant.name] for mutant in inside)
        explained = sum(found[mutant.name] == SURVIVED and mutant.name in reasons for mutant in inside)
        share = f"{100 * (count[KILLED] + count[TIMED_OUT]) / len(inside):.0f} %"
        cells = (folder, len(inside), count[KILLED], count[TIMED_OUT], count[SURVIVED], explained, share)
        table.append(f"| {' | '.join(map(str, cells))} |")
    rows = ["| where | line | fault | why it may stay |", "|---|---|---|---|"]
    for mutant in sorted(chosen, key=lambda mutant: (mutant.path, mutant.line)):
        if found[mutant.name] == SURVIVED:
            cells = (f"`{_cell(text)}`" for text in (mutant.code, f"{mutant.before} → {mutant.after}"))
            rows.append(f"| {mutant.path}:{mutant.line} | {' | '.join(cells)} | {reasons.get(mutant.name, '')} |")
    return "\n\n".join(["# Faults that the tests see", setup, "\n".join(table), "## Survivors", "\n".join(rows)]) + "\n"


def _cell(code: str) -> str:
    return (code if len(code) <= WIDEST else f"{code[:WIDEST]} ...").replace("|", "\\|")


def setup_of(root: Path, args: argparse.Namespace, number: str) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    )
    command = f"python scripts/mutate.py {' '.join(sys.argv[1:])}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytest", "diffusers"))
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}, commit {commit.stdout.strip()}, Python {sys.version.split()[0]}, "
        f"{versions}; {number} faults. {args.files or 'All'} files of tests judge a fault, the nearest first, at most "
        f"{args.seconds:g} CPU seconds of them, no test slower than {SLOWEST_S:g} s. Where they take far longer than "
        "without the fault, it has timed out and counts as seen."
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--sample", type=int, default=300, help="number of faults (300)")
    made.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    made.add_argument("--only", nargs="*", default=[""], metavar="PATH", help="files or folders of the core (all)")
    made.add_argument("--seconds", type=float, default=15, help="CPU seconds of tests for a fault (15)")
    made.add_argument("--files", type=int, help="of tests that judge a fault, the nearest (all that enter it)")
    made.add_argument("--again", action="store_true", help="judge the survivors of the last run anew")
    made.add_argument("--output", type=Path, required=True, help="Markdown; beside it the judgements, .jsonl")
    return made


def unmount(folder: Path) -> None:
    """Take away what tests that were ended had mounted below `folder`, so that it can be removed."""
    for disk in psutil.disk_partitions(all=True):
        if Path(disk.mountpoint).is_relative_to(folder):
            subprocess.run(["umount", "--lazy", disk.mountpoint], check=True)


def main(root: Path = ROOT, heavy: Sequence[str] = HEAVY) -> None:
    args = parser().parse_args()
    sources = {path: (root / path).read_text() for path in core_files(root) if path.startswith(tuple(args.only))}
    if not sources:
        parser().error(f"--only: no file of the core begins with {' or '.join(args.only)}")
    by_path = {path: mutants_of(path, source) for path, source in sources.items()}
    lines = {path: len(source.splitlines()) for path, source in sources.items()}
    chosen = sampled(by_path, lines, args.sample, args.seed)
    output = args.output.absolute()
    record = output.with_suffix(".jsonl")
    if args.again:
        forget_survivors(record)
    reasons_file = root / "benchmarks" / REASONS
    reasons = json.loads(reasons_file.read_text()) if reasons_file.exists() else {}
    done: list[Mutant] = []
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder) / "tree"
        copied(root, copy)
        prepare(copy, heavy)
        try:
            for mutant in judged(root, copy, chosen, record, args):
                done.append(mutant)
        finally:  # also where it was ended: the first of a sample are a sample
            unmount(Path(folder))
            if done:
                setup = setup_of(root, args, f"{len(done)} of {len(chosen)}")
                output.write_text(page(done, read_record(record), reasons, setup))


if __name__ == "__main__":
    main()
