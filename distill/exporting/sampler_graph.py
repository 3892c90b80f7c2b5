"""What the graphs of a student have in common: who may have one, the files beside it, and what it does to detail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dar import SiT
from distill.conditions import ClassLabels
from distill.errors import UserError
from distill.exporting import card
from distill.exporting.base import Options, Source
from distill.latents.vae import IMAGE_CHANNELS
from distill.metrics.edges import edge_width, edge_widths
from distill.metrics.grain import grain, grain_power
from distill.render import clamp_images
from distill.sampling import noise_for

ABOUT_FILE = "sampler.json"
NUM_COMPARED = 32
SEED = 1
USE = """## Draw

```bash
python {runner} --classes 0,1 --seed 0 --output picture.png
```

`{runner}` needs {needs}. The graph is the whole sampler, its timesteps are constants. Inputs: `noise`, float32
({noises}, B, {shape}), standard normal, and `labels`, int64 (B), for any B. Output: `samples`, float32
(B, {shape}){what}."""


def student_of(source: Source, options: Options, to: str) -> SiT:
    """The model. Raises: UserError for what has no graph."""
    if not source.is_student:
        raise UserError(f"{source.folder} is a teacher; --to {to} takes a student (--to diffusers takes both)")
    if options.vae:
        raise UserError(f"--vae goes with --to diffusers: a graph for --to {to} holds the sampler, and gives latents")
    return cast(SiT, source.sampler.model).float()


def example(source: Source, num: int) -> tuple[Tensor, Tensor]:
    """noise (K, num, C, H, W) and labels (num)."""
    sampler = source.sampler
    return noise_for(range(num), sampler.num_noises, sampler.model.sample_shape, SEED), sampler.condition.balanced(num)


def write_beside(source: Source, options: Options, folder: Path, runner: str, needs: str) -> None:
    """The runner, what it needs to know, and the card."""
    sampler, model = source.sampler, cast(SiT, source.sampler.model)
    classes = cast(ClassLabels, sampler.condition)
    about: dict[str, Any] = {
        "num_noises": sampler.num_noises,
        "sample_shape": list(model.sample_shape),
        "t_list": sampler.t_list.tolist(),
        "classes": dict(zip(map(str, classes.labels.tolist()), classes.names(classes.labels), strict=True)),
    }
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=1) + "\n")
    shutil.copyfile(Path(__file__).with_name(runner), folder / runner)
    use = USE.format(
        runner=runner,
        needs=needs,
        noises=sampler.num_noises,
        shape=", ".join(map(str, model.sample_shape)),
        what=" in [-1, 1], to be clamped"
        if model.sample_shape[0] in IMAGE_CHANNELS
        else ": latents, which an autoencoder decodes",
    )
    (folder / "README.md").write_text(card.card(source, options, library=needs.split()[-1], use=use))


def what_comes_out(model: SiT) -> list[str]:
    """Said of a graph whose samples are no pictures."""
    if model.sample_shape[0] in IMAGE_CHANNELS:
        return []
    return [f"the graph gives latents, {' x '.join(map(str, model.sample_shape))}; decode them with your autoencoder"]


@torch.no_grad()
def compared(source: Source, samples: Tensor) -> str:
    """How the samples of a graph, from `example`, differ from the student's own."""
    ours = source.sampler.draw(*example(source, len(samples)))
    text = f"largest difference {float((samples - ours).abs().max()):.2g} over {len(samples)} samples"
    if ours.shape[1] not in IMAGE_CHANNELS:
        return text
    (width, grains), (own_width, own_grain) = detail(samples), detail(ours)
    return f"{text}; edge width {width:.3f} pixels for {own_width:.3f}, grain x 1000 {grains:.2f} for {own_grain:.2f}"


def detail(images: Tensor) -> tuple[float, float]:
    """Mean edge width in pixels, and grain x 1000, of images (N, C, H, W) in [-1, 1]."""
    images = clamp_images(images)
    return edge_width(edge_widths(images).mean(0)), grain(grain_power(images).mean(0))
