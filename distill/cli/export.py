"""Hand a student or teacher on: a diffusers pipeline, or the sampler as an ONNX or torch graph; to the hub if asked."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run folder (its student), a model folder, or `embedded` (the teacher)")
    parser.add_argument("target", help="a new folder")
    parser.add_argument(
        "--to",
        choices=("diffusers", "onnx", "torch"),
        required=True,
        help="a pipeline for DiffusionPipeline.from_pretrained, or a student's whole sampler as one graph",
    )
    parser.add_argument(
        "--vae", help="for diffusers: decodes latents, a folder or a hub name in the local cache (what the run says)"
    )
    parser.add_argument("--int8", action="store_true", help="for onnx: weights of linear layers in 8 bits")
    parser.add_argument("--license", metavar="ID", help="of the weights, for the card, such as apache-2.0 (not stated)")
    parser.add_argument("--push", metavar="NAMESPACE/NAME", help="then upload the folder as this repository of the hub")
    parser.add_argument("--public", action="store_true", help="where that repository is new: for all to see (private)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written and uploaded; do neither")


def main(args: argparse.Namespace) -> None:
    from distill.verbs.export import export

    done = export(
        args.model,
        args.target,
        args.to,
        vae=args.vae,
        int8=args.int8,
        license=args.license,
        push=args.push,
        public=args.public,
        dry_run=args.dry_run,
    )
    would = "would be " if args.dry_run else ""
    print(f"{done.folder} {would or 'is '}written: {sum(done.files.values()) / 2**20:,.1f} MiB")
    for name, size in done.files.items():
        print(f"  {name:<48}{size:>14,}")
    for note in done.notes:
        print(note)
    if args.push:
        seen = "public" if args.public else "private"
        print(f"{args.push} {would}uploaded: {done.address or f'a new repository would be {seen}'}".strip())
