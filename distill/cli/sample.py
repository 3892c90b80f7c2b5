"""Draw images from a student or a teacher."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_sampler_arguments, number_list

    parser.add_argument("model", help="a model folder, a run folder (its student), or `embedded` (the teacher)")
    parser.add_argument("--output", required=True, help="a new folder: grid.png and one PNG per image")
    parser.add_argument("--num-images", type=int, default=80, metavar="N", help="how many (80)")
    parser.add_argument("--classes", type=number_list, help="such as 0,3,9; all in turn where not given")
    add_sampler_arguments(parser)


def main(args: argparse.Namespace) -> None:
    from distill.cli.common import load_sampler
    from distill.files import new_folder
    from distill.verbs.sample import sample

    folder = new_folder(args.output)
    drawn = sample(
        load_sampler(args, args.model),
        args.num_images,
        classes=args.classes,
        seed=args.seed,
        batch_size=args.batch_size,
        vae=args.vae,
        output=args.output,
    )
    print(
        f"{len(drawn.images)} images by {drawn.sampler.name} ({drawn.description}), "
        f"{drawn.images_per_second:.1f} per second: {folder}"
    )
