"""The command line: a file for each verb, with `add_arguments` and `main`, which prints what the verb returns.

May import everything, inside `main` what imports torch: `--help` has to answer at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import distill
from distill.allocator import keep_freed_memory
from distill.cli import (
    compare,
    convert,
    diagnose,
    evaluate,
    export,
    inspect,
    plan,
    recipes,
    retrofit,
    run,
    sample,
    statistics,
    train,
)
from distill.errors import SAID_BY_MAIN, NonFiniteError, StoppedError

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
    "export": export,
    "recipes": recipes,
}
RESUMABLE = ("run", "train")
STOPS = (
    signal.SIGTERM,
    signal.SIGUSR1,
)  # as Ctrl-C, which Python handles; updates handle all three (training/signals.py)
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # in torch's words, on a CPU and on a GPU
EXIT_CODES = {
    0: "done",
    1: "a fault of the program, with a traceback",
    2: "a mistake that the user can mend",
    3: "diverged: not finite",
    4: "another process of the run was lost",
    75: "stopped by a signal; --resume goes on (EX_TEMPFAIL of sysexits.h)",
    130: "interrupted, in a verb that cannot be resumed",
    141: "whoever read what it prints, such as `head`, has ended (128 + SIGPIPE)",
}
WITH_PROGRESS = ("run", "train", "sample", "evaluate", "compare", "diagnose", "statistics")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dar-distill",
        description="Few-step students of diffusion transformers with Diffusion-Adaptive Routing, and what "
        "becomes of their detail.",
        epilog="Start with: dar-distill run quickstart",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {distill.__version__}")
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
    """One of `EXIT_CODES`; what is not 0 comes with one line on stderr that says why, but for 141."""
    args = parse_args(argv)
    keep_freed_memory()
    # Checkpoints and data are local; a library that asks a hub for news would only make people wait.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    before = {number: signal.signal(number, _stop) for number in STOPS} if args.verb in RESUMABLE else {}
    try:
        if args.verb in WITH_PROGRESS:
            from distill.progress import show_progress

            show_progress()
        VERBS[args.verb].main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        return _unread()
    except (ValueError, OSError) as error:
        return _fail(error, 2, args)
    except NonFiniteError as error:
        return _fail(error, 3, args)
    except StoppedError as error:
        return _stopped(str(error), args)
    except KeyboardInterrupt as error:
        if args.verb in RESUMABLE:
            return _stopped(f"stopped by {str(error) or 'SIGINT'}", args)
        print("\nstopped", file=sys.stderr)
        return 130
    except MemoryError as error:
        return _fail(ValueError(f"there is not enough memory: {_first_line(error)}"), 2, args)
    except RuntimeError as error:
        from distill.processes import is_lost_process

        if any(words in str(error) for words in OUT_OF_MEMORY):
            return _fail(ValueError(f"there is not enough memory: {_first_line(error)}"), 2, args)
        if not is_lost_process(error):
            raise
        why = "another process of this run has ended, or is out of reach; where it could, it says why itself"
        return _fail(RuntimeError(f"{why} ({_first_line(error)})"), 4, args)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Outside of the updates, of which each can be ended, there is nothing to be saved."""
    raise KeyboardInterrupt(signal.Signals(number).name)


def _stopped(why: str, args: argparse.Namespace) -> int:
    """Say how to go on. `--from` is left out: from there the run has gone on."""
    if os.environ.get("RANK", "0") == "0":
        words = ["dar-distill", args.verb, args.config, *args.overrides, "--resume"]
        print(f"\n{why}; go on with: {shlex.join(words)}", file=sys.stderr)
    return 75


def _unread() -> int:
    """What was not printed yet goes nowhere, so that Python does not complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _fail(error: Exception, code: int, args: argparse.Namespace) -> int:
    if args.traceback:
        raise error
    if SAID_BY_MAIN not in getattr(error, "__notes__", []):
        number = int(os.environ.get("WORLD_SIZE", "1"))
        who = f"process {os.environ.get('RANK', '0')} of {number}: " if number > 1 else ""
        print(f"dar-distill: error: {who}{' '.join(str(error).split())}", file=sys.stderr)
    return code


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
