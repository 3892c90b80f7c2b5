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
    from distill.config import RetrofitConfig, config_from_overrides
    from distill.verbs.retrofit import retrofit

    routing = config_from_overrides(RetrofitConfig, args.overrides).routing
    done = retrofit(args.source, args.target, routing, lossy=args.lossy)
    print(f"{done.folder}: routing {done.kind}, {done.parameters:,} parameters more")
    print(f"change of the velocity, over its RMS: at most {done.worst:.1e}, RMS {done.typical:.1e}")
