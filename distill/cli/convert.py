"""Turn a public checkpoint (SiT, REPA, DiT, diffusers) into a model folder."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a .pt file of SiT, REPA or DiT, or a diffusers folder")
    parser.add_argument("target", help="a new folder")
    parser.add_argument("--weights", choices=("ema", "model"), default="ema", help="of a training file (ema)")
    parser.add_argument("--num-heads", type=int, metavar="N", help="where the file and its size don't tell")
    parser.add_argument("--format", metavar="NAME", help="where several fit: sit, repa, dit, diffusers, dar")
    parser.add_argument(
        "--numerics",
        choices=("native", "original"),
        default="native",
        help="for diffusers: what diffusers computes (native), or the authors' code with these weights",
    )


def main(args: argparse.Namespace) -> None:
    from distill.verbs.convert import convert

    done = convert(
        args.source,
        args.target,
        weights=args.weights,
        numerics=args.numerics,
        num_heads=args.num_heads,
        format=args.format,
    )
    low, high = done.t_range
    print(f"{done.folder}: {done.num_parameters:,} parameters, t in [{low:.4g}, {high:.4g}]")
