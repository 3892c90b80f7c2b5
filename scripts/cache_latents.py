"""Latents of an image set, for data.name = latents: an autoencoder runs over every image once.

    python scripts/cache_latents.py photos latents --vae stabilityai/sd-vae-ft-mse

SRC is a folder with one subfolder per class, square images of one size (or of any, with --size), or a .npz file with
`images` and `labels`.
DST/vae-sd gets REPA's layout: mean and standard deviation of the posterior, unscaled. Started again after a stop, the
same command goes on with what is missing. The autoencoder is read from a folder or from the hub's local cache.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.cli.common import resumable_script
from distill.data import load_dataset
from distill.data.caching import Cache, claim, write_latents
from distill.data.checking import fingerprint
from distill.files import locked
from distill.latents.vae import load_vae
from distill.processes import default_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAY_EVERY = 30.0  # seconds, where there is no terminal for a progress bar


class Speech:
    """Progress in lines, for logs."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._started = self._said = time.perf_counter()

    def advance(self, number: int) -> None:
        self._done += number
        now = time.perf_counter()
        if now - self._said >= SAY_EVERY or self._done == self._total:
            left = (now - self._started) / self._done * (self._total - self._done)
            self._console.print(f"{self._done:,}/{self._total:,} latents, {left:.0f} s left", highlight=False)
            self._said = now


def cache_latents(args: argparse.Namespace) -> None:
    if args.batch_size < 1 or args.workers < 1:
        raise ValueError(f"--batch-size and --workers must be at least 1; got {args.batch_size} and {args.workers}")
    source, target = Path(args.source).expanduser(), Path(args.target).expanduser()
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"DST {target} lies in SRC, whose subfolders are classes")
    images = load_dataset("npz" if source.suffix == ".npz" else "images", source, args.split, args.size)
    device = torch.device(args.device) if args.device else default_device()
    vae = load_vae(args.vae, device, DTYPES[args.dtype])
    made_from = " ".join(map(str, (fingerprint(source), args.split, *([args.size] if args.size else []))))
    cache = Cache(target, images, vae, made_from, args.dtype, args.flip)
    shape = vae.latent_shape(images.sample_shape)
    with locked(cache.folder):
        missing = claim(cache)
        there = cache.num_files - len(missing)
        print(f"{cache.num_files:,} latents of {shape} from {images.sample_shape}, {there:,} of them there already")
        console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("", total=cache.num_files, completed=there)
            speech = Speech(console, len(missing))
            advance = (lambda n: progress.advance(bar, n)) if console.is_terminal else speech.advance
            write_latents(cache, missing, args.batch_size, args.workers, advance)
    print(f"{cache.folder}: data.name=latents data.path={target} data.vae={args.vae}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="a folder of class subfolders, or a .npz file")
    parser.add_argument("target", metavar="DST", help="latents go to DST/vae-sd")
    parser.add_argument("--vae", default="stabilityai/sd-vae-ft-mse", help="folder or hub name (sd-vae-ft-mse)")
    parser.add_argument("--split", default="train", choices=("train", "test"), help="where SRC has both (train)")
    parser.add_argument("--size", type=int, metavar="N", help="resize and crop images to N x N, as data.size does")
    parser.add_argument("--flip", action="store_true", help="also mirrored copies, after all others")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at once (16)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the autoencoder (float32)")
    parser.add_argument("--device", help="such as cuda:1 or cpu (the first accelerator there is)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that read images (2)")
    return resumable_script("cache_latents", lambda: cache_latents(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
