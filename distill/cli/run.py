"""Distil a teacher into a few-step student, measure both, and write the report."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_config_arguments

    add_config_arguments(parser)


def main(args: argparse.Namespace) -> None:
    if args.dry_run:
        from distill.cli.common import print_dry_run
        from distill.objectives import RunConfig

        return print_dry_run(RunConfig, args)
    from distill.verbs.run import run

    done = run(args.config, args.overrides, resume=args.resume, from_step=args.from_step)
    if done is not None:
        print(f"student: {done.student}")
        if done.report is not None:
            print(f"report:  {done.report}")
