"""Arguments that verbs share, and what is made of them. Nothing here imports torch before it is called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.config import DataConfig, EvalConfig, TeacherConfig
    from distill.sampling import Sampler


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or a shipped recipe such as quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as student.steps=2")
    parser.add_argument("--resume", action="store_true", help="continue the run in its output folder")
    parser.add_argument(
        "--from",
        dest="from_step",
        type=step_number,
        metavar="STEP",
        help="resume from this checkpoint, such as 500; later ones are removed (the newest)",
    )
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
    parser.add_argument(
        "--cfg-rescale", type=float, default=0.0, metavar="SHARE", help="of the conditional norm, 0 to 1 (0)"
    )
    parser.add_argument("--solver", choices=("euler", "heun", "sde"), default="euler", help="likewise (euler)")
    parser.add_argument(
        "--mixed-precision", choices=("no", "bf16"), default="no", help="bf16: networks draw in bf16 autocast (no)"
    )
    parser.add_argument("--prompts", metavar="FOLDER", help="of encoded prompts (those that the model's folder names)")
    parser.add_argument(
        "--vae", help="decodes latents: a folder, or a hub name in the local cache (what the run's configuration says)"
    )


def add_reference_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="pictures to compare with: a folder or a .npz file")
    parser.add_argument(
        "--reference",
        default="auto",
        help="or their statistics: a file of `statistics`, ADM's or torch-fidelity's, `embedded`, or `none` (auto: the "
        "shipped ones for the shipped teacher and its students)",
    )
    parser.add_argument(
        "--teacher-reference",
        default="embedded",
        help="the teacher's statistics, or `none` (embedded, for the shipped teacher and its students)",
    )
    parser.add_argument("--extractor", default="auto", help="of features: inception, dinov2, embedded or auto (auto)")
    parser.add_argument("--offline", action="store_true", help="download no weights; as HF_HUB_OFFLINE=1")


def step_number(text: str) -> int:
    """ "500" or "step_00000500" to 500."""
    return positive(text.removeprefix("step_"))


def positive(text: str) -> int:
    """ "3" to 3."""
    number = int(text) if text.lstrip("-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return number


def resumable_script(name: str, work: Callable[[], object]) -> int:
    """The exit code of a script that goes on when it is started again, which says in one line why it ended early."""
    try:
        work()
    except (ValueError, OSError) as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is missing", file=sys.stderr)
        return 130
    return 0


def name_list(text: str) -> list[str]:
    """ "0,cat" to ["0", "cat"]; in double quotes a name may have commas of its own."""
    import csv

    try:
        return [part.strip() for part in next(csv.reader([text], skipinitialspace=True))] or [""]
    except csv.Error as error:
        raise argparse.ArgumentTypeError(f"must be names with commas between them; got {text!r}") from error


def print_dry_run(config_type: type, args: argparse.Namespace) -> None:
    """The plan of the configuration, in place of the run."""
    from distill.planning import Launch
    from distill.planning.tables import print_plan
    from distill.verbs.configs import config_of
    from distill.verbs.plan import plan_of_config

    print_plan(plan_of_config(config_of(config_type, args.config, args.overrides), None, Launch()))


def teacher_config(args: argparse.Namespace, path: str) -> TeacherConfig:
    """How a model without timesteps of its own is to draw."""
    from distill.config import TeacherConfig

    return TeacherConfig(
        path=path,
        cfg_scale=args.cfg_scale,
        cfg_channels=args.cfg_channels,
        cfg_rescale=args.cfg_rescale,
        prompts=args.prompts,
        steps=args.steps,
        solver=args.solver,
    )


def load_sampler(args: argparse.Namespace, path: str) -> Sampler:
    """The model with its sampler, as the arguments say."""
    from distill.sampling.samplers import load_sampler as with_its_sampler
    from distill.verbs.load import placed

    return placed(with_its_sampler(path, teacher_config(args, path)))


def eval_config(args: argparse.Namespace) -> EvalConfig:
    """What is drawn and measured, as the arguments say."""
    from distill.config import EvalConfig

    return EvalConfig(
        num_images=args.num_images,
        batch_size=args.batch_size,
        extractor=args.extractor,
        data=None if args.data is None else pictures(args.data),
        reference=None if args.reference == "none" else args.reference,
        teacher_reference=None if args.teacher_reference == "none" else args.teacher_reference,
        vae=args.vae,
        seed=args.seed,
        mixed_precision=args.mixed_precision,
        offline=args.offline,
    )


def pictures(path: str) -> DataConfig:
    """The data set of a .npz file or a folder: pictures, or latents if there is a listing of them."""
    from pathlib import Path

    from distill.config import DataConfig

    listings = (Path(path, "dataset.json"), Path(path, "vae-sd", "dataset.json"))
    return DataConfig("latents" if any(file.is_file() for file in listings) else "pictures", path)
