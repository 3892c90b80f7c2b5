"""What a checkpoint is, read without its weights."""

from __future__ import annotations

from pathlib import Path

from dar import describe_checkpoint
from dar.checkpoints import Description
from dar.checkpoints.printable import printable
from distill.assets import resolve

CONVENTIONS = {
    "velocity": "velocity eps - x0, t = 0 data, t = 1 noise",
    "reversed_velocity": "velocity x0 - eps, t = 0 noise, t = 1 data; turned on loading",
    "ddpm_eps": "eps on DDPM's schedule; made a velocity on loading",
}


def inspect(path: str | Path) -> Description:
    """Format, shape, convention, training arguments of a file or folder; `embedded` is the shipped teacher."""
    return describe_checkpoint(resolve(str(path), "teacher"))


def description_lines(found: Description) -> list[tuple[str, str]]:
    """Property and value, for people."""
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
    lines += [("argument", f"{printable(name)} = {printable(value)}") for name, value in found.args.items()]
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
