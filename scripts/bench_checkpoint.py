"""How long a training waits for a checkpoint, and how long until it is whole: written at once, and in a thread.

    python scripts/bench_checkpoint.py /fast/disk --output benchmarks/checkpoints.md

The state is a SiT-B/2 with AdamW and an average, 2.1 GB. `at once` is what accelerate's save_state writes, with
checksums, while the training waits; `in a thread` is what a run does. Beside it, what a product of matrices takes
meanwhile.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from bench_tools import parsed, parser_of, setup, table, version_of
from torch.optim import AdamW

from dar import SiT
from dar.presets import preset
from distill.files import write_text
from distill.files.whole import put_in_place, seal_folder, temporary_name
from distill.models.ema import Ema
from distill.training.checkpoint import checkpoint_path, checkpoints
from distill.training.saving import Saver

LARGE = 18e9  # bytes: SiT-XL with whole roles


@dataclass
class Times:
    """Seconds that the training waits, of those on a core, until the checkpoint is whole; of a product before and
    meanwhile.
    """

    held: float
    on_core: float
    whole: float
    alone: float
    meanwhile: float


def made(model: str, device: str) -> Accelerator:
    """What a checkpoint is of: a model, its optimizer after a step, and its average."""
    accelerator = Accelerator(cpu=device == "cpu")
    network = SiT(preset(model))
    optimizer = AdamW(network.parameters(), fused=True)
    network, optimizer = accelerator.prepare(network, optimizer)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    accelerator.register_for_checkpointing(Ema(network, 0.999))
    return accelerator


def at_once(accelerator: Accelerator, folder: Path, step: int) -> None:
    final = checkpoint_path(folder, step)
    fresh = temporary_name(final)
    accelerator.save_state(str(fresh))
    seal_folder(fresh)
    put_in_place(fresh, final)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old)


def product_s(a: torch.Tensor) -> float:
    began = time.perf_counter()
    for _ in range(3):
        torch.mm(a, a)
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def timed(save: Callable[[], object], is_whole: Callable[[], bool], a: torch.Tensor) -> Times:
    alone = statistics.median(product_s(a) for _ in range(5))
    began, on_core = time.perf_counter(), time.thread_time()
    save()
    held, on_core = time.perf_counter() - began, time.thread_time() - on_core
    products = []
    while not is_whole():
        products.append(product_s(a))
    return Times(held, on_core, time.perf_counter() - began, alone, statistics.median(products) if products else alone)


def row(name: str, times: list[Times], size: int) -> list[str]:
    seconds = [[t.held for t in times], [t.on_core for t in times], [t.whole for t in times]]
    medians = [statistics.median(values) for values in seconds]
    cells = [f"{m:.2f} [{min(v):.2f}, {max(v):.2f}]" for m, v in zip(medians, seconds, strict=True)]
    slower = statistics.median(t.meanwhile / t.alone for t in times)
    return [name, *cells, f"{slower:.2f}", *(f"{middle * LARGE / size:.0f}" for middle in medians)]


def main() -> None:
    parser = parser_of(__doc__, {"cpu": 3, "cuda": 5})
    parser.add_argument("folder", type=Path, help="a folder on the disk that is written to")
    parser.add_argument("--model", default="SiT-B/2", help="of the presets (SiT-B/2)")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    accelerator = made(args.model, args.device)
    width = 700 if args.device == "cpu" else 8192
    a = torch.randn(width, width, device=args.device)
    times: dict[str, list[Times]] = {"at once": [], "in a thread, first": [], "in a thread": []}
    with tempfile.TemporaryDirectory(dir=args.folder) as name, Saver(accelerator, Path(name) / "new", 1) as saver:
        folder = Path(name)
        for step in range(1, args.repeats + 1):
            final = checkpoint_path(folder / "new", step)
            times["at once"].append(timed(partial(at_once, accelerator, folder / "old", step), lambda: True, a))
            arm = "in a thread, first" if step == 1 else "in a thread"
            times[arm].append(timed(partial(saver.save, step), final.is_dir, a))
            saver.wait()
        (newest,) = checkpoints(folder / "new")
        size = sum(path.stat().st_size for path in newest.iterdir())
    header = ["written", "waits, s", "on a core, s", "until whole, s", "products meanwhile, times as long"]
    header += [f"{name}, 18 GB, extrapolated, s" for name in ("waits", "on a core", "until whole")]
    rows = [row(arm, found, size) for arm, found in times.items() if found and args.arms.search(arm)]
    versions = ", ".join(f"{package} {version_of(package)}" for package in ("accelerate", "safetensors"))
    text = (
        f"# Writing a checkpoint\n\n{setup(args.device)}, {versions}; {size / 1e9:.2f} GB, {args.repeats} repeats, "
        f"arms in turn; median [least, most].\n\n{table(header, rows)}\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
