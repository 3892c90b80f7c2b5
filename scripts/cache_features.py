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

from distill.cli.common import positive
from distill.data import load_dataset
from distill.data.checking import fingerprint
from distill.data.features import FEATURES_FILE, INDEX_FILE, read_index, write_index
from distill.errors import UserError
from distill.metrics import load_extractor
from distill.processes import default_device
from distill.progress import progress_bar, show_progress

SAVE_EVERY = 50  # batches


def cache_features(args: argparse.Namespace) -> None:
    source, target = Path(args.source).expanduser(), Path(args.target).expanduser()
    data = load_dataset("npz" if source.suffix == ".npz" else "images", source, args.split, args.size)
    encoder: Any = load_extractor(args.encoder, args.path, device=default_device())
    if not encoder.reads(tuple(data.sample_shape)):
        raise UserError(f"{args.encoder} does not read images of {tuple(data.sample_shape)}")
    index = {
        "encoder": f"{encoder.name}-{encoder.version}",
        "made_from": " ".join(map(str, (fingerprint(source), args.split, *([args.size] if args.size else [])))),
        "num": len(data),
    }
    done = begun(target, index)
    with progress_bar() as progress, torch.no_grad():
        bar = progress.add_task("features", total=len(data), completed=done)
        rows: Any = None
        for number, first in enumerate(range(done, len(data), args.batch_size), 1):
            chosen = torch.arange(first, min(first + args.batch_size, len(data)))
            images, _ = data.batch(chosen, torch.zeros)
            tokens = encoder.tokens(images).half().cpu().numpy()
            rows = opened(target, (len(data), *tokens.shape[1:]), exists=done > 0) if rows is None else rows
            rows[first : first + len(tokens)] = tokens
            if number % SAVE_EVERY == 0 or first + len(tokens) == len(data):
                rows.flush()
                write_index(target, {**index, "done": first + len(tokens)})
            progress.advance(bar, len(tokens))
    print(f"{target}: repa.encoder=stored repa.path={target}")


def begun(target: Path, index: dict[str, Any]) -> int:
    """How many features are there. Raises: UserError where the folder holds others, or anything else."""
    if (target / INDEX_FILE).is_file():
        there = read_index(target)
        different = [name for name in index if there.get(name) != index[name]]
        if different:
            raise UserError(f"{target} holds features of another {different[0]}: {there.get(different[0])}")
        return there["done"]
    if target.exists() and any(entry.name != FEATURES_FILE for entry in target.iterdir()):
        raise UserError(f"{target} is not empty; choose another")
    target.mkdir(parents=True, exist_ok=True)
    return 0


def opened(target: Path, shape: tuple[int, ...], *, exists: bool) -> Any:
    if exists:
        return np.load(target / FEATURES_FILE, mmap_mode="r+")
    return np.lib.format.open_memmap(target / FEATURES_FILE, "w+", np.float16, shape)


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
    try:
        cache_features(args)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
