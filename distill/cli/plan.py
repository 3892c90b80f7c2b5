"""Say what a run or a training will take: memory by role and phase, operations, hours; nothing is built."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file of run or train, or a shipped recipe such as quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.batch_size=64")
    parser.add_argument(
        "--model",
        nargs="+",
        metavar=("NAME", "key=value"),
        help="a named shape in place of the folder's, such as SiT-XL/2 routing.kind=dar (DiT-XL/2 has SiT-XL/2's)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="on as many devices (1)")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), help="what processes share (ddp)")
    parser.add_argument("--accelerate", metavar="FILE", help="take both from accelerate's configuration file")
    parser.add_argument("--tflops", type=float, metavar="X", help="hours at X * 10^12 operations a second, too")
    parser.add_argument("--json", action="store_true", help="the same as JSON: bytes, operations, hours")


def main(args: argparse.Namespace) -> None:
    import math

    from distill.errors import UserError
    from distill.planning.tables import plan_to_json, print_plan
    from distill.verbs.plan import launch_of, plan

    if args.tflops is not None and not 0 < args.tflops < math.inf:
        raise UserError(f"--tflops must be finite and above 0; got {args.tflops:g}")
    launch = launch_of(args.processes, args.strategy, args.accelerate)
    found = plan(args.config, args.overrides, model=args.model or (), launch=launch)
    if args.json:
        print(plan_to_json(found, args.tflops))
    else:
        print_plan(found, args.tflops)
