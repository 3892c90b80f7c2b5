"""List the configurations that ship with the package, or copy one to edit."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", metavar="NAME", help="copy this one into the working folder, as NAME.yaml")
    parser.add_argument("--output", metavar="FILE", help="with --write: copy it to this file instead")


def main(args: argparse.Namespace) -> None:
    from pathlib import Path

    from distill.assets.recipes import recipes, summary
    from distill.errors import UserError
    from distill.files import write_text

    found = recipes()
    if args.write is None:
        if args.output is not None:
            raise UserError("--output says where --write copies to; give --write NAME as well")
        width = max(map(len, found))
        for name, path in found.items():
            print(f"{name:<{width}}  {summary(path)}")
        return
    if args.write not in found:
        raise UserError(f"--write must be one of {', '.join(found)}; got {args.write!r}")
    target = Path(args.output or f"{Path(args.write).name}.yaml").expanduser()
    if target.exists():
        raise UserError(f"{target} is there already; choose another with --output, or remove it")
    write_text(target, found[args.write].read_text())
    print(f"{args.write}: {target}")
