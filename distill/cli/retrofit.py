"""Give a plain model routing over depth without changing what it computes."""

from __future__ import annotations

import argparse

from distill.cli.common import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="folder of a plain model, or a transformer or pipeline of diffusers")
    parser.add_argument("target", help="a new folder")
    parser.add_argument("overrides", nargs="*", metavar="routing.key=value", help="such as routing.query=dynamic")
    parser.add_argument(
        "--lossy", action="store_true", help="also a routing that starts from another function; the change is measured"
    )
    stock = parser.add_argument_group("for a transformer of diffusers, whose weights stay where they are")
    stock.add_argument("--prompts", metavar="FOLDER", help="of encoded prompts (scripts/encode_prompts.py)")
    stock.add_argument(
        "--sample-shape",
        type=positive,
        nargs="+",
        metavar="N",
        help="latents: C H W, of video C F H W (as it was trained)",
    )
    stock.add_argument(
        "--guidance", type=float, metavar="SCALE", help="that a guidance-distilled model is told (its own)"
    )
    stock.add_argument(
        "--sources",
        choices=("differences", "written"),
        default="differences",
        help="differences: to the bit at the start; written: true in bf16, for training (differences)",
    )


def main(args: argparse.Namespace) -> None:
    from distill.config import RetrofitConfig, config_from_overrides
    from distill.verbs.retrofit import StockOptions, retrofit

    routing = config_from_overrides(RetrofitConfig, args.overrides).routing
    shape = args.sample_shape and tuple(args.sample_shape)
    stock = StockOptions(args.prompts, shape, args.guidance, args.sources)
    done = retrofit(args.source, args.target, routing, lossy=args.lossy, stock=stock)
    print(f"{done.folder}: routing {done.kind}, {done.parameters:,} parameters more")
    if done.worst == done.worst:
        print(f"change of the velocity, over its RMS: at most {done.worst:.1e}, RMS {done.typical:.1e}")
    else:
        print("change of the velocity: not measured, there are no prompts to ask the model with; --prompts FOLDER")
