"""The command line. Each verb is a file with `add_arguments` and `main`; torch is imported inside `main`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from distill.cli import compare, convert, diagnose, evaluate, inspect, plan, retrofit, run, sample, train
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
    "retrofit": retrofit,
    "convert": convert,
    "inspect": inspect,
}
RESUMABLE = ("run", "train")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dar-distill",
        description="Few-step students of diffusion transformers with Diffusion-Adaptive Routing, and what "
        "becomes of their detail.",
        epilog="Start with: dar-distill run configs/quickstart.yaml",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        summary = (verb.__doc__ or "").splitlines()[0]
        verb_parser = verbs.add_parser(name, help=summary, description=summary)
        verb.add_arguments(verb_parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 2 with one line on stderr for what the user can mend; 3 where a run diverged."""
    args = build_parser().parse_args(argv)
    keep_freed_memory()
    # Checkpoints and data are local; a library that asks a hub for news would only make people wait.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        VERBS[args.verb].main(args)
    except (ValueError, OSError) as error:
        return _fail(error, 2, args.traceback)
    except NonFiniteError as error:
        return _fail(error, 3, args.traceback)
    except KeyboardInterrupt:
        words = "; --resume continues from the newest checkpoint, if there is one" if args.verb in RESUMABLE else ""
        print(f"\nstopped{words}", file=sys.stderr)
        return 130
    return 0


def _fail(error: Exception, code: int, traceback: bool) -> int:
    if traceback:
        raise error
    message = " ".join(str(error).split())
    print(f"dar-distill: error: {message}", file=sys.stderr)
    return code
