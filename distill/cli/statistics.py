"""Measure a data set once, for `evaluate.reference`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import positive

    parser.add_argument("path", help="a folder or a file of the data set")
    parser.add_argument("--name", default="images", help="data set: idx, images, npz, latents or pictures (images)")
    parser.add_argument("--output", required=True, help="the .npz file to write")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--num-images", type=positive, default=10000, metavar="N", help="at most (10000)")
    parser.add_argument(
        "--extractor", default="inception", help="of features: inception, dinov2 or embedded (inception)"
    )
    parser.add_argument("--size", type=positive, metavar="N", help="resize and crop images to N x N")
    parser.add_argument("--vae", help="decodes latents: a folder, or a hub name in the local cache")
    parser.add_argument("--source", help="a name for people (the path)")
    parser.add_argument("--offline", action="store_true", help="download no weights; as HF_HUB_OFFLINE=1")


def main(args: argparse.Namespace) -> None:
    from distill.config import DataConfig
    from distill.errors import UserError
    from distill.verbs.statistics import statistics

    if not args.output.endswith(".npz"):
        raise UserError(f"--output {args.output} must end in .npz")
    made = statistics(
        DataConfig(args.name, args.path, size=args.size, vae=args.vae),
        split=args.split,
        num_images=args.num_images,
        extractor=args.extractor,
        source=args.source,
        output=args.output,
        offline=args.offline,
    )
    print(f"{args.output}: {made.source}")
