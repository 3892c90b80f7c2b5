"""Embeddings of prompts, for models that are told text: the text encoders of a pipeline run over each prompt once.

    python scripts/encode_prompts.py prompts.txt Qwen/Qwen-Image prompts/animals

PROMPTS is a text file with a prompt a line (blank lines and those that begin with # are left out), or a .jsonl file
with a field `prompt`. MODEL is the folder of a diffusers pipeline, or its hub name in the local cache; its transformer
and its autoencoder are not read. Started again after a stop, the same command goes on with what is missing, and so does
one with more prompts at the end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from distill.cli.common import positive, resumable_script
from distill.data.prompt_encoding import BATCH, TextEncoders, encode_prompts, read_prompts
from distill.processes import default_device
from distill.progress import progress_bar, show_progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def encode(args: argparse.Namespace) -> None:
    folder = Path(args.output).expanduser()
    prompts = read_prompts(Path(args.prompts).expanduser())
    device = torch.device(args.device) if args.device else default_device()
    encoders = TextEncoders(args.model, device, DTYPES[args.dtype], args.max_length)
    with progress_bar() as progress:
        bar = progress.add_task("prompts", total=len(prompts) + 1)
        made = encode_prompts(
            prompts,
            encoders,
            folder,
            null=args.negative,
            batch_size=args.batch_size,
            advance=lambda number: progress.advance(bar, number),
        )
    print(f"{folder}: {made} of L = {made.index.length}: {made.tensors}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", metavar="PROMPTS", help="a text file, or .jsonl")
    parser.add_argument("model", metavar="MODEL", help="a pipeline of diffusers: a folder, or a hub name")
    parser.add_argument("output", metavar="OUTPUT", help="a folder for the embeddings")
    parser.add_argument("--negative", default="", metavar="TEXT", help="the null prompt of guidance (empty)")
    parser.add_argument("--max-length", type=positive, metavar="N", help="tokens of a prompt (as the pipeline has it)")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of encoders and embeddings (bfloat16)")
    parser.add_argument("--batch-size", type=positive, default=BATCH, metavar="N", help=f"prompts at once ({BATCH})")
    parser.add_argument("--device", help="such as cuda:1 or cpu (the first accelerator there is)")
    args = parser.parse_args(argv)
    show_progress()
    return resumable_script("encode_prompts", lambda: encode(args))


if __name__ == "__main__":
    sys.exit(main())
