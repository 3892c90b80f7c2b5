"""Features of an image set, for repa.encoder = stored: an encoder runs over every image once.

    python scripts/cache_features.py photos features --encoder dinov2 --path facebook/dinov2-base

SRC is a folder with one subfolder per class, or a .npz file with `images` and `labels`, in the order in which
`cache_latents.py` reads it. Started again after a stop, the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.cli.common import positive, resumable_script
from distill.data import Dataset, load_dataset
from distill.data.checking import fingerprint
from distill.data.features import FEATURES_FILE, INDEX_FILE, SUMS_FILE, read_index, row_sums, write_index
from distill.errors import UserError
from distill.files import locked, resolved
from distill.files.bounded import new_npy
from distill.files.folders import contents
from distill.metrics import load_extractor
from distill.processes import default_device
from distill.progress import progress_bar, show_progress

SAVE_EVERY = 50  # batches


def cache_features(args: argparse.Namespace) -> None:
    source, target = Path(args.source).expanduser(), resolved(args.target)
    data = load_dataset("npz" if source.suffix == ".npz" else "images", source, args.split, args.size)
    encoder: Any = load_extractor(args.encoder, args.path, device=default_device())
    if not encoder.reads(tuple(data.sample_shape)):
        raise UserError(f"{args.encoder} does not read images of {tuple(data.sample_shape)}")
    index = {
        "encoder": f"{encoder.name}-{encoder.version}",
        "made_from": " ".join(map(str, (fingerprint(source), args.split, *([args.size] if args.size else [])))),
        "num": len(data),
    }
    with locked(target):
        _encode_missing(args.batch_size, data, encoder, target, index)
    print(f"{target}: repa.encoder=stored repa.path={target}")


def _encode_missing(batch_size: int, data: Dataset, encoder: Any, target: Path, index: dict[str, Any]) -> None:
    done = begun(target, index)
    with progress_bar() as progress, torch.no_grad():
        bar = progress.add_task("features", total=len(data), completed=done)
        rows: Any = None
        sums: Any = None
        for number, first in enumerate(range(done, len(data), batch_size), 1):
            chosen = torch.arange(first, min(first + batch_size, len(data)))
            images, _ = data.batch(chosen, torch.zeros)
            tokens = encoder.tokens(images).half().cpu().numpy()
            rows, sums = opened(target, (len(data), *tokens.shape[1:]), done) if rows is None else (rows, sums)
            rows[first : first + len(tokens)] = tokens
            sums[first : first + len(tokens)] = row_sums(tokens)
            if number % SAVE_EVERY == 0 or first + len(tokens) == len(data):
                rows.flush()
                sums.flush()
                write_index(target, {**index, "done": first + len(tokens)})
            progress.advance(bar, len(tokens))


def begun(target: Path, index: dict[str, Any]) -> int:
    """How many features are there. Raises: UserError where the folder holds others, or anything else."""
    if (target / INDEX_FILE).is_file():
        there = read_index(target)
        different = [name for name in index if there.get(name) != index[name]]
        if different:
            raise UserError(f"{target} holds features of another {different[0]}: {there.get(different[0])}")
        return there["done"]
    if any(entry.name not in (FEATURES_FILE, SUMS_FILE) for entry in contents(target)):
        raise UserError(f"{target} is not empty; choose another")
    return 0


def opened(target: Path, shape: tuple[int, ...], done: int) -> tuple[np.memmap, np.memmap]:
    """The files of features, of which `done` are there, and of their checksums, which an earlier version wrote not."""
    if not done:
        return new_npy(target / FEATURES_FILE, np.float16, shape), new_npy(target / SUMS_FILE, np.uint64, shape[:1])
    rows = np.lib.format.open_memmap(target / FEATURES_FILE, "r+")
    if (target / SUMS_FILE).is_file():
        return rows, np.lib.format.open_memmap(target / SUMS_FILE, "r+")
    sums = new_npy(target / SUMS_FILE, np.uint64, shape[:1])
    sums[:done] = row_sums(rows[:done])
    return rows, sums


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="a folder of class subfolders, or a .npz file")
    parser.add_argument("target", metavar="DST", help="a folder for features.json and features.npy")
    parser.add_argument("--encoder", default="dinov2", choices=("dinov2", "embedded"))
    parser.add_argument("--path", help="of its weights: a folder, or a Hub name (facebook/dinov2-large)")
    parser.add_argument("--split", default="train", choices=("train", "test"), help="where SRC has both (train)")
    parser.add_argument("--size", type=int, metavar="N", help="resize and crop images to N x N, as data.size does")
    parser.add_argument("--batch-size", type=positive, default=50, metavar="N", help="images at once (50)")
    args = parser.parse_args(argv)
    show_progress()
    return resumable_script("cache_features", lambda: cache_features(args))


if __name__ == "__main__":
    sys.exit(main())
