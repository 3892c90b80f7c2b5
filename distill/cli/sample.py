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
    from distill.verbs.sample import sample

    sample(args)
