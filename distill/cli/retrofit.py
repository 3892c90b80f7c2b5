"""Give a plain model routing over depth without changing what it computes."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of a plain model (routing.kind residual)")
    parser.add_argument("target", help="a new folder")
    parser.add_argument("overrides", nargs="*", metavar="routing.key=value", help="such as routing.query=dynamic")
    parser.add_argument(
        "--lossy", action="store_true", help="also a routing that starts from another function; the change is measured"
    )


def main(args: argparse.Namespace) -> None:
    from distill.verbs.retrofit import retrofit_folder

    retrofit_folder(args)
