"""The images of an evaluation: drawn by all processes together, and kept on disk until they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.config import EvalConfig
from distill.latents.decoding import Decoder
from distill.processes import Processes
from distill.progress import progress_bar
from distill.render import clamp_images
from distill.sampling import Sampler, describe
from distill.sampling.drawn import DrawnImages, draw_all, weights_hash

DRAWN = "drawn"


@dataclass(frozen=True)
class Drawing:
    """images: (N, C, H, W) or (N, C, F, H, W) in [-1, 1], none in any process but the main one.

    images_per_second: of one process.
    """

    sampler: Sampler
    images: Tensor
    images_per_second: float

    @property
    def labels(self) -> Tensor:
        """The group of each image, (N)."""
        condition = self.sampler.condition
        return condition.groups(condition.balanced(len(self.images)))


def draw(
    samplers: Sequence[tuple[Sampler, int]], config: EvalConfig, decoder: Decoder, keep: Path | None = None
) -> list[Drawing]:
    """So many images of each sampler, from the same noise and conditions. All processes call this.

    Args:
        keep: a folder for the images, in float32: a call that was cut off goes on there. None keeps them in memory.

    Raises: UserError where `keep` holds images of something else.
    """
    is_main = Processes.all().is_main
    drawings = []
    with progress_bar(main_process=is_main) as progress:
        for number, (sampler, num_images) in enumerate(samplers):
            drawn = None
            if is_main:
                stem = None if keep is None else keep / str(number)
                drawn = _claim(stem, sampler, num_images, config, decoder)
            draw_all(
                drawn,
                sampler,
                sampler.condition.balanced(num_images),
                seed=config.seed,
                batch_size=config.batch_size,
                decoder=decoder,
                stored_as=clamp_images,
                progress=progress,
            )
            if drawn:
                drawings.append(Drawing(sampler, torch.from_numpy(drawn.array), num_images / drawn.seconds))
            else:
                drawings.append(Drawing(sampler, torch.empty(0), 0.0))
    return drawings


def _claim(stem: Path | None, sampler: Sampler, num_images: int, config: EvalConfig, decoder: Decoder) -> DrawnImages:
    made_of = {
        "sampler": f"{sampler.name}: {describe(sampler, decoder)}",
        "weights": weights_hash(sampler.model) if stem else "",
        "vae": config.vae,
        "seed": config.seed,
        "num_images": num_images,
    }
    return DrawnImages(stem, made_of, (num_images, *decoder.image_shape(sampler.model.sample_shape)), np.float32)
