"""Say what a checkpoint is: format, shape, convention, training arguments; its weights are not read."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a .pt file of SiT, REPA or DiT, a diffusers folder, or a model folder")


def main(args: argparse.Namespace) -> None:
    from distill.verbs.inspect import description_lines, inspect

    for name, value in description_lines(inspect(args.path)):
        print(f"{name:<12}{value}")
