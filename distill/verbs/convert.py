"""`dar-distill convert` and `dar-distill inspect`: public checkpoints."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from safetensors.torch import save_file

from dar import describe_checkpoint, load_pretrained, load_projectors
from dar.checkpoints import Description
from dar.checkpoints.words import shown
from distill.assets import resolve
from distill.files import new_folder, write_folder

PROJECTORS_FILE = "projectors.safetensors"
CONVENTIONS = {
    "velocity": "velocity eps - x0, t = 0 data, t = 1 noise",
    "reversed_velocity": "velocity x0 - eps, t = 0 noise, t = 1 data; turned on loading",
    "ddpm_eps": "eps on DDPM's schedule; made a velocity on loading",
}


def convert(args: Namespace) -> None:
    """Load, save as a folder of ours; REPA's projectors in a file beside the model."""
    target = new_folder(args.target, "target")
    model = load_pretrained(
        args.source, weights=args.weights, numerics=args.numerics, num_heads=args.num_heads, format=args.format
    )
    projectors = load_projectors(args.source, weights=args.weights)

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        if projectors:
            save_file({name: tensor.contiguous() for name, tensor in projectors.items()}, folder / PROJECTORS_FILE)

    write_folder(target, fill)
    low, high = model.t_range
    print(f"{target}: {sum(p.numel() for p in model.parameters()):,} parameters, t in [{low:.4g}, {high:.4g}]")


def inspect(args: Namespace) -> None:
    """Print a description, one property a line."""
    for name, value in description_lines(describe_checkpoint(resolve(args.path, "teacher"))):
        print(f"{name:<12}{value}")


def description_lines(found: Description) -> list[tuple[str, str]]:
    config = found.config
    ambiguous = "; its contents don't tell, say which with --format" if len(found.formats) > 1 else ""
    heads = str(config.num_heads) if found.heads_known else "unknown, say with --num-heads"
    lines = [
        ("format", " or ".join(entry.title for entry in found.formats) + ambiguous),
        ("size", f"{found.size_bytes / 2**20:,.1f} MiB"),
        *(("prediction", text) for text in _predictions(found)),
        ("samples", f"{config.in_channels} x {config.input_size} x {config.input_size}"),
        ("shape", f"depth {config.depth}, width {config.hidden_size}, patch {config.patch_size}, heads {heads}"),
        ("routing", config.routing.kind),
        ("classes", f"{config.num_classes} and the null class {config.num_classes}"),
        ("parameters", f"{found.num_parameters:,}"),
        ("ema", _ema(found)),
    ]
    if found.num_projectors:
        lines.append(("projectors", f"{found.num_projectors} tensors, kept apart"))
    lines += [("argument", f"{shown(name)} = {shown(value)}") for name, value in found.args.items()]
    return lines


def _predictions(found: Description) -> list[str]:
    texts = [CONVENTIONS[prediction] for prediction in found.predictions]
    if len(texts) == 1:
        return texts
    return [f"of {entry.title}: {text}" for entry, text in zip(found.formats, texts, strict=True)]


def _ema(found: Description) -> str:
    if not found.sets or found.sets == ("only",):
        return "one set of weights, not named"
    return f"{'yes' if 'ema' in found.sets else 'no'}; sets: {', '.join(found.sets)}"
