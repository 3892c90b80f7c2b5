"""Measure a student or a teacher: Fréchet, KID, precision, recall, spectra, edges, LPIPS."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_reference_arguments, add_sampler_arguments

    parser.add_argument("model", help="a model folder, a run folder (its student), or `embedded` (the teacher)")
    parser.add_argument("--output", required=True, help="folder for measures.json and measures.npz")
    parser.add_argument("--num-images", type=int, default=5000, metavar="N", help="how many (5000)")
    add_reference_arguments(parser)
    add_sampler_arguments(parser)


def main(args: argparse.Namespace) -> None:
    from distill.verbs.sample import evaluate

    evaluate(args)
