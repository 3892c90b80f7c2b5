"""Put several students beside their teacher: same noise and labels, one table, one page."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_reference_arguments, add_sampler_arguments

    parser.add_argument("runs", nargs="+", metavar="RUN", help="run or student folders")
    parser.add_argument("--teacher", default="embedded", help="a model folder, or `embedded`")
    parser.add_argument("--output", required=True, help="a new folder for report.html and its pictures")
    parser.add_argument("--num-images", type=int, default=2000, metavar="N", help="per sampler (2000)")
    add_reference_arguments(parser)
    add_sampler_arguments(parser)


def main(args: argparse.Namespace) -> None:
    from distill.cli.common import eval_config, teacher_config
    from distill.verbs.compare import compare

    teacher = teacher_config(args, args.teacher)
    found = compare(args.runs, teacher, eval_config(args), output=args.output)
    if found is not None:  # on the main process
        print(f"report: {found.report}")
