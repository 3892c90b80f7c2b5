"""Draw images from a student or a teacher."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_sampler_arguments, name_list

    parser.add_argument("model", help="a model folder, a run folder (its student), or `embedded` (the teacher)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", help="a new folder: grid.png and one PNG per image")
    where.add_argument(
        "--npz", metavar="FILE", help="one file in the format of ADM's evaluation suite; the same command resumes it"
    )
    parser.add_argument("--num-images", type=int, metavar="N", help="how many (80; 50000 into an .npz file)")
    parser.add_argument(
        "--classes",
        type=name_list,
        help="names or numbers, such as 0,3,9 or '\"a fox, asleep\",3'; all in turn where not given",
    )
    add_sampler_arguments(parser)


def main(args: argparse.Namespace) -> None:
    from distill.cli.common import load_sampler
    from distill.files import new_folder
    from distill.verbs.sample import NUM_IMAGES, sample
    from distill.verbs.sample_npz import NUM_IMAGES as NUM_NPZ
    from distill.verbs.sample_npz import sample_npz

    given = {name: getattr(args, name) for name in ("classes", "seed", "batch_size", "vae", "mixed_precision")}
    if args.npz:
        num_images = NUM_NPZ if args.num_images is None else args.num_images
        file = sample_npz(load_sampler(args, args.model), args.npz, num_images, **given)
        print(f"{num_images} images: {file}")
        return
    folder = new_folder(args.output)
    num_images = NUM_IMAGES if args.num_images is None else args.num_images
    drawn = sample(load_sampler(args, args.model), num_images, **given, output=args.output)
    print(
        f"{len(drawn.images)} images by {drawn.sampler.name} ({drawn.description}), "
        f"{drawn.images_per_second:.1f} per second: {folder}"
    )
