"""Pairs of noise and sample of a teacher, for the objective `regression`.

    python scripts/make_pairs.py embedded pairs/fashion --num 10000 --cfg-scale 1.5

Each sample is drawn by the teacher's own sampler, its conditions in turn. Started again after a stop, the same command
goes on with what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from distill.cli.common import add_sampler_arguments, load_sampler, positive, resumable_script
from distill.conditions import slice_rows
from distill.data.pairs import (
    INDEX_FILE,
    SHARD,
    finish,
    missing_shards,
    read_index,
    shard_path,
    weights_hash,
    write_index,
    write_shard,
)
from distill.errors import UserError
from distill.files import locked, resolved
from distill.files.folders import contents
from distill.progress import progress_bar, show_progress
from distill.sampling import Sampler
from distill.sampling.drawing import draw_batches

COLUMNS = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())


def make_pairs(args: argparse.Namespace) -> None:
    sampler, folder = load_sampler(args, args.model), resolved(args.output)
    if sampler.num_noises != 1:
        raise UserError(f"{args.model}: {sampler.description} takes {sampler.num_noises} noises; pairs are of an ODE")
    index = {
        "teacher": weights_hash(sampler.model),
        "sampler": sampler.description,
        "cfg_scale": args.cfg_scale,
        "seed": args.seed,
        "num": args.num,
        "sample_shape": list(sampler.model.sample_shape),
    }
    with locked(folder):
        _begin(folder, index)
        _draw_missing(folder, sampler, args)
    print(f"{folder}: {args.num:,} pairs, objective.name=regression objective.pairs={folder}")


def _begin(folder: Path, index: dict[str, Any]) -> None:
    """Raises: UserError where the folder holds other pairs, or anything else."""
    if (folder / INDEX_FILE).is_file():
        there = {name: value for name, value in read_index(folder).items() if name != "version"}
        if there != index:
            different = next(name for name in index if there.get(name) != index[name])
            raise UserError(f"{folder} holds pairs of another {different}: {there.get(different)}; take another folder")
    elif contents(folder):
        raise UserError(f"{folder} is not empty; choose another")
    else:
        write_index(folder, index)


def _draw_missing(folder: Path, sampler: Sampler, args: argparse.Namespace) -> None:
    conditions = sampler.condition.balanced(args.num)
    missing = missing_shards(folder, args.num)
    with progress_bar(COLUMNS) as progress:
        bar = progress.add_task("", total=args.num)
        for first in range(0, args.num, SHARD):
            last = min(first + SHARD, args.num)
            if shard_path(folder, first) in missing:
                rows, batches = slice_rows(conditions, 0, last), []
                for x0, _ in draw_batches(sampler, rows, seed=args.seed, batch_size=args.batch_size, start=first):
                    batches.append(x0)
                    progress.advance(bar, len(x0))
                write_shard(folder, first, torch.cat(batches), slice_rows(conditions, first, last))
            else:
                progress.advance(bar, last - first)
    finish(folder, args.num, [path.name for path in missing])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder, or `embedded`")
    parser.add_argument("output", metavar="FOLDER")
    parser.add_argument("--num", type=positive, default=10_000, help="pairs (10000)")
    add_sampler_arguments(parser)
    args = parser.parse_args(argv)
    show_progress()
    return resumable_script("make_pairs", lambda: make_pairs(args))


if __name__ == "__main__":
    sys.exit(main())
