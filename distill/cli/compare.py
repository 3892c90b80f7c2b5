"""Compare students, or pictures from elsewhere: who keeps edges better, and how sure is that. One page."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_reference_arguments, add_sampler_arguments

    parser.add_argument("runs", nargs="*", metavar="RUN", help="run or student folders; others are held to the first")
    parser.add_argument("--group", action="append", default=[], metavar="NAME=RUN,RUN", type=group,
                        help="one arm of several trainings, whose spread is a part of every interval")  # fmt: skip
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FOLDER", type=named,
                        help="pictures that are there already, a folder or a .npz file")  # fmt: skip
    parser.add_argument("--teacher", default="embedded", help="a model folder, or `embedded`")
    parser.add_argument("--output", required=True, help="a new folder for report.html, comparison.json and .csv")
    parser.add_argument("--num-images", type=int, default=2000, metavar="N", help="per sampler (2000)")
    add_reference_arguments(parser)
    add_sampler_arguments(parser)


def named(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        raise argparse.ArgumentTypeError(f"must be NAME=PATH; got {text!r}")
    return name, path


def group(text: str) -> tuple[str, list[str]]:
    name, paths = named(text)
    return name, [path for path in paths.split(",") if path]


def main(args: argparse.Namespace) -> None:
    from distill.cli.common import eval_config, teacher_config
    from distill.verbs.compare import compare

    teacher = teacher_config(args, args.teacher)
    found = compare(
        args.runs, teacher, eval_config(args), output=args.output, groups=dict(args.group), images=dict(args.images)
    )
    if found is not None:  # on the main process
        for one in found.compared:
            print("\n".join([one.heading, *(f"  {line}" for line in one.answer)]))
        print(f"report: {found.report}")
