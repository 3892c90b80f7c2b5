"""Measure a student or a teacher: Fréchet, KID, precision, recall, spectra, edges, LPIPS."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_reference_arguments, add_sampler_arguments

    parser.add_argument(
        "model", nargs="?", help="a model folder, a run folder (its student), or `embedded` (the teacher)"
    )
    parser.add_argument("--images", help="pictures in place of a model: a folder or a .npz file")
    parser.add_argument("--output", required=True, help="folder for measures.json and measures.npz")
    parser.add_argument("--num-images", type=int, default=5000, metavar="N", help="how many (5000)")
    add_reference_arguments(parser)
    add_sampler_arguments(parser)


def main(args: argparse.Namespace) -> None:
    import math

    from distill.cli.common import eval_config, load_sampler
    from distill.errors import UserError
    from distill.metrics import MEASURES
    from distill.verbs.evaluate import evaluate, evaluate_images

    if (args.model is None) == (args.images is None):
        raise UserError("give either a model to draw from or --images, pictures that are there already")
    if args.images:
        found = evaluate_images(args.images, eval_config(args), output=args.output)
    else:
        found = evaluate(load_sampler(args, args.model), eval_config(args), output=args.output)
    if found is None:
        return  # not the main process
    measured = found.measured
    rate = f", {measured.images_per_second:.1f} per second" if measured.images_per_second else ""
    print(f"{measured.name} ({measured.description}), {measured.num_images} images{rate}")
    for name, value in measured.measures.items():
        title, unit = MEASURES[name].title, MEASURES[name].unit
        limits = "" if math.isnan(value.low) else f"[{value.low:.4f}, {value.high:.4f}] "
        print(f"  {title:<40} {value.value:10.4f}  {limits}{unit}")
    for note in found.notes:
        print(f"note: {note}")
