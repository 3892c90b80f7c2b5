"""The command line: a file for each verb, with `add_arguments` and `main`, which prints what the verb returns.

May import everything, inside `main` what imports torch: `--help` has to answer at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from distill.cli import (
    compare,
    convert,
    diagnose,
    evaluate,
    inspect,
    plan,
    recipes,
    retrofit,
    run,
    sample,
    statistics,
    train,
)
from distill.cli.allocator import keep_freed_memory
from distill.errors import NonFiniteError

VERBS = {
    "run": run,
    "train": train,
    "plan": plan,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "diagnose": diagnose,
    "statistics": statistics,
    "retrofit": retrofit,
    "convert": convert,
    "inspect": inspect,
    "recipes": recipes,
}
RESUMABLE = ("run", "train")
WITH_PROGRESS = ("run", "train", "sample", "evaluate", "compare", "diagnose", "statistics")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dar-distill",
        description="Few-step students of diffusion transformers with Diffusion-Adaptive Routing, and what "
        "becomes of their detail.",
        epilog="Start with: dar-distill run quickstart",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").splitlines()[0]
        verb_parser = verbs.add_parser(name, help=summary, description=summary)
        verb.add_arguments(verb_parser)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a verb; its overrides, key=value, may stand before and after options."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(late) < len(rest) or (late and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        args.overrides = [*args.overrides, *late]
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one line on stderr for what the user can mend; 3 where a run diverged."""
    args = parse_args(argv)
    keep_freed_memory()
    # Checkpoints and data are local; a library that asks a hub for news would only make people wait.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        if args.verb in WITH_PROGRESS:
            from distill.progress import show_progress

            show_progress()
        VERBS[args.verb].main(args)
    except (ValueError, OSError) as error:
        return _fail(error, 2, args.traceback)
    except NonFiniteError as error:
        return _fail(error, 3, args.traceback)
    except KeyboardInterrupt:
        hint = "; --resume continues from the newest checkpoint, if there is one" if args.verb in RESUMABLE else ""
        print(f"\nstopped{hint}", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception, code: int, traceback: bool) -> int:
    if traceback:
        raise error
    message = " ".join(str(error).split())
    print(f"dar-distill: error: {message}", file=sys.stderr)
    return code
