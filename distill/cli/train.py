"""Train a teacher from data by flow matching."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from distill.cli.common import add_config_arguments

    add_config_arguments(parser)


def main(args: argparse.Namespace) -> None:
    from distill.verbs.train import pretrain

    pretrain(args.config, args.overrides, resume=args.resume, dry_run=args.dry_run)
