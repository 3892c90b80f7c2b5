"""The README.md of an exported folder: what it is, how to draw, what the run measured, how it was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from dar import SiT
from distill.conditions import ClassLabels
from distill.evaluation.measured import Measured
from distill.exporting.base import Options, Source
from distill.latents.vae import IMAGE_CHANNELS
from distill.metrics import MEASURES, Interval
from distill.report.versions import versions

MEASURES_FOLDER = "measures"  # of a run
MAX_NAMES = 20  # of classes, in a card


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def card(source: Source, options: Options, *, library: str, use: str, about: str | None = None) -> str:
    """The whole text. use: how to draw. about: what the model is; None for a SiT, of which `what` tells."""
    front = {"library_name": library, "license": options.licence, "pipeline_tag": "unconditional-image-generation"}
    tags = ["dar-distill", "few-step" if source.is_student else "teacher"]
    lines = [*(f"{name}: {value}" for name, value in front.items() if value), f"tags: [{', '.join(tags)}]"]
    parts = [
        "\n".join(["---", *lines, "---"]),
        f"# {source.name}\n\n{what(source) if about is None else about}",
        use,
        f"## Figures\n\n{figures(source)}",
        f"## How it was made\n\n{history(source)}",
        f"## Licence\n\n{licence(options)}",
    ]
    return "\n\n".join(parts) + "\n"


def what(source: Source) -> str:
    """Model, samples, classes and timesteps in a few lines."""
    sampler, model = source.sampler, cast(SiT, source.sampler.model)
    config, classes = model.config, cast(ClassLabels, source.sampler.condition)
    channels, height, width = model.sample_shape
    names = classes.names(classes.labels)
    shown = (
        "" if classes.class_names is None else f": {', '.join(names[:MAX_NAMES])}{', ..' * (len(names) > MAX_NAMES)}"
    )
    kind = f"{sampler.num_steps}-step student" if source.is_student else "teacher"
    parameters = sum(p.numel() for p in model.parameters())
    lines = [
        f"A {kind}: a class-conditional SiT, depth {config.depth}, width {config.hidden_size}, patch "
        f"{config.patch_size}, routing {config.routing.kind}, {parameters:,} parameters.",
        f"It makes samples of {channels} x {height} x {width} in [-1, 1]"
        f"{'' if channels in IMAGE_CHANNELS else ' (latents)'} of {classes.num_distinct} classes{shown}; class "
        f'{model.null_label} is "none".',
    ]
    if source.is_student:
        lines.append(f"Timesteps, 1 being noise: {listed(sampler.t_list.tolist())}; {sampler.description}.")
    return "\n".join(lines)


def figures(source: Source) -> str:
    """What its run measured, as a table."""
    folder = None if source.run is None else source.run / MEASURES_FOLDER
    files = [] if folder is None else sorted(folder.glob("*.json"))
    found = sorted((Measured.load(file) for file in files), key=lambda measured: -measured.evaluations)
    if not found:
        return "Not measured."
    head = ["measure", *(measured.name for measured in found)]
    rows = [["network evaluations", *(str(measured.evaluations) for measured in found)]]
    for name, measure in MEASURES.items():
        cells = [_cell(measured.measures.get(name)) for measured in found]
        if any(cells):
            rows.append([f"{measure.title}{f', {measure.unit}' if measure.unit else ''}", *cells])
    numbers = sorted({measured.num_images for measured in found})
    table = "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    return f"Over {', '.join(map(str, numbers))} images, with 95 % intervals.\n\n{table}"


def _cell(value: Interval | None) -> str:
    if value is None or math.isnan(value.value):
        return ""
    if math.isnan(value.low) or math.isnan(value.high):
        return f"{value.value:.4g}"
    return f"{value.value:.4g} ({value.low:.4g} to {value.high:.4g})"


def history(source: Source) -> str:
    """Teacher, objective, updates and versions."""
    config: dict[str, Any] = source.config
    lines = []
    if source.is_student and config:
        teacher, loop = config.get("teacher") or {}, config.get("train") or {}
        objective = (config.get("objective") or {}).get("name")
        lines.append(
            f"Distilled by `dar-distill run` from the teacher {Path(str(teacher.get('path'))).name} (guidance "
            f"{teacher.get('cfg_scale')}): objective {objective}, {loop.get('steps')} updates of "
            f"{loop.get('batch_size')} samples."
        )
    used = ", ".join(f"{name} {versions()[name].split('+')[0]}" for name in ("dar-distill", "torch"))
    return "\n".join([*lines, f"Exported by `dar-distill export` ({used})."])


def licence(options: Options) -> str:
    weights = f"The weights: {options.licence}." if options.licence else "Of the weights: not stated."
    vae = f" The autoencoder is {Path(options.vae).name}, under its own licence." if options.vae else ""
    return f"{weights}{vae} The code in this folder: Apache-2.0."
