"""Train a teacher from data by flow matching."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_config_arguments

    add_config_arguments(parser)


def main(args: argparse.Namespace) -> None:
    if args.dry_run:
        from distill.cli.common import print_dry_run
        from distill.config import TrainConfig

        return print_dry_run(TrainConfig, args)
    from distill.verbs.train import train

    done = train(args.config, args.overrides, resume=args.resume, from_step=args.from_step)
    if done is not None:
        print(f"teacher: {done.teacher}")
