"""Look inside models along depth and timestep: magnitudes, gradients, redundancy, importance, routing."""

from __future__ import annotations

import argparse

from distill.cli.common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="model folders, run folders, folders of diffusers, or `embedded` (the shipped teacher)",
    )
    parser.add_argument("--vs", metavar="MODEL", help="one more, that the others are compared with")
    parser.add_argument("--output", required=True, help="a new folder for diagnosis.html, its pictures and JSON")
    parser.add_argument(
        "--num-images", type=int, default=200, metavar="N", help="in all, as many of each class or prompt (200)"
    )
    parser.add_argument(
        "--data",
        metavar="NAME:PATH",
        help="images, such as idx:data/FashionMNIST/raw; with captions for a model of prompts (Debian's Fashion-MNIST "
        "where it fits, else the model's own)",
    )
    parser.add_argument("--prompts", metavar="FOLDER", help="of encoded prompts (those that the model's folder names)")
    parser.add_argument("--batch-size", type=positive, default=50, metavar="N", help="images at once (50)")
    parser.add_argument("--seed", type=int, default=1, help="of images and noise (1)")


def main(args: argparse.Namespace) -> None:
    from distill.verbs.diagnose import diagnose

    page, diagnosis = diagnose(
        args.models,
        output=args.output,
        vs=args.vs,
        num_images=args.num_images,
        data=args.data,
        prompts=args.prompts,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    print(f"diagnosis: {page}")
    for note in diagnosis.notes:
        print(f"note: {note}")
