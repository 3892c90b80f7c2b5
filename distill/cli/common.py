"""Arguments that verbs share. Nothing here imports torch."""

from __future__ import annotations

import argparse


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, such as configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as student.steps=2")
    parser.add_argument("--resume", action="store_true", help="continue the run in its output folder")
    parser.add_argument(
        "--dry-run", action="store_true", help="print roles, parameters, memory, steps and cost; do nothing"
    )


def add_sampler_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=1, help="image i of a seed is always the same (1)")
    parser.add_argument("--batch-size", type=positive, default=250, metavar="N", help="images at once (250)")
    parser.add_argument("--steps", type=positive, default=50, help="ODE steps, for a model without its own (50)")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="guidance, for such a model (1.5)")
    parser.add_argument(
        "--cfg-channels", type=int, metavar="N", help="guide the first N channels only; DiT and SiT do with 3 (all)"
    )
    parser.add_argument("--solver", choices=("euler", "heun"), default="euler", help="likewise (euler)")
    parser.add_argument(
        "--vae", help="decodes latents: a folder, or a hub name in the local cache (what the run's configuration says)"
    )


def add_reference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extractor", default="embedded", help="embedded or inception (embedded)")
    parser.add_argument("--reference", default="embedded", help="the data's statistics, a .npz file (embedded)")
    parser.add_argument("--teacher-reference", default="embedded", help="the teacher's, or `none` (embedded)")


def positive(text: str) -> int:
    """ "3" to 3."""
    number = int(text) if text.lstrip("-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return number


def number_list(text: str) -> list[int]:
    """ "0,3,9" to [0, 3, 9]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be whole numbers with commas between") from error
