"""Draw images from a student or a teacher."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from distill.conditions import Condition, ConditionBatch, num_rows, take_rows
from distill.errors import UserError
from distill.files import new_folder, write_folder
from distill.latents.decoding import decoder_for
from distill.processes import Processes
from distill.progress import progress_bar
from distill.render import clamp_images, grid_image, save_grid, save_sample
from distill.sampling import Sampler, describe, draw_images, in_precision
from distill.sampling.drawing import check_drawn
from distill.verbs.load import load, vae_of

GRID_ROWS = 8
NUM_IMAGES = 80


@dataclass(frozen=True)
class Samples:
    """images: (N, C, H, W), or videos (N, C, F, H, W), in [-1, 1], round robin over `num_columns` conditions.

    y: what each was conditioned on. names: of each image's condition. description: what defines the images
    beside the weights.
    """

    images: Tensor
    y: ConditionBatch
    names: list[str]
    num_columns: int
    images_per_second: float
    sampler: Sampler
    description: str

    def grid(self, rows: int = GRID_ROWS) -> Image.Image:
        """One column per condition, videos as strips of frames. Raises: ValueError where there is no whole row."""
        return grid_image(*self._columns(rows))

    def save(self, folder: Path) -> None:
        """One PNG per picture, or moving WebP per video, and `grid.png` where there is a whole row, in a new folder."""

        def fill(path: Path) -> None:
            for i, (image, name) in enumerate(zip(self.images, self.names, strict=True)):
                save_sample(image, path, file_name(i, name))
            if len(self.images) >= self.num_columns:
                save_grid(*self._columns(GRID_ROWS), path / "grid.png")

        write_folder(folder, fill)

    def _columns(self, rows: int) -> tuple[Tensor, int]:
        """Images condition by condition, as grids take them, and how many there are of each."""
        rows = min(rows, len(self.images) // self.num_columns)
        if not rows:
            raise ValueError(f"{len(self.images)} images make no row of {self.num_columns}")
        by_row = self.images[: rows * self.num_columns].view(rows, self.num_columns, *self.images.shape[1:])
        return by_row.transpose(0, 1).flatten(0, 1), rows


def file_name(number: int, name: str) -> str:
    """Of an image, without an ending: its number and, of the name of its condition, what every file system takes."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "", name)[:60]
    return f"{number:06d}_{plain}" if plain else f"{number:06d}"


def conditions_for(condition: Condition, num_images: int, classes: Sequence[int | str] | None) -> ConditionBatch:
    """`num_images` conditions: `classes` in turn, or all of them. Raises: UserError for a class that there is not."""
    if num_images < 1:
        raise UserError(f"--num-images must be at least 1; got {num_images}")
    if not classes:
        return condition.balanced(num_images)
    try:
        chosen = condition.select([str(name) for name in classes])
    except UserError as error:
        raise UserError(f"--classes: {error}") from error
    return take_rows(chosen, torch.arange(num_images) % num_rows(chosen))


def sample(
    model: str | Path | Sampler,
    num_images: int = NUM_IMAGES,
    *,
    classes: Sequence[int | str] | None = None,
    seed: int = 1,
    batch_size: int = 250,
    vae: str | None = None,
    mixed_precision: str = "no",
    output: str | Path | None = None,
) -> Samples:
    """Draw `num_images`; image i of a seed is always the same, whatever the batch size.

    Args:
        model: what `load` takes, or what it returned.
        classes: to draw in turn, names or numbers; a number that is the name of a class means that. None for all.
        vae: decodes latents: a folder, or a hub name in the local cache; None for what the run's configuration names.
        mixed_precision: `bf16` draws in bf16 autocast. output: a new folder to save them in; None saves nothing.

    Raises: UserError for a class that the model does not know, or a folder that is not empty.
    """
    folder = None if output is None else new_folder(str(output))
    sampler = in_precision(model if isinstance(model, Sampler) else load(model), mixed_precision)
    condition = sampler.condition
    y = conditions_for(condition, num_images, classes)
    device = next(sampler.model.parameters()).device
    decoder = decoder_for(vae_of(vae, [sampler.path]), sampler.model.sample_shape, device)
    processes = Processes.all()
    with progress_bar(main_process=processes.is_main) as progress:
        bar = progress.add_task("drawing", total=num_images)
        images, rate = draw_images(
            sampler,
            y,
            seed=seed,
            batch_size=batch_size,
            decoder=decoder,
            advance=lambda n: progress.advance(bar, n),
            processes=processes,
        )
    check_drawn(images, sampler)
    samples = Samples(
        images=clamp_images(images),
        y=y,
        names=condition.names(y),
        num_columns=len(classes) if classes else condition.num_distinct,
        images_per_second=rate,
        sampler=sampler,
        description=describe(sampler, decoder),
    )
    if folder is not None and processes.is_main:
        samples.save(folder)
    return samples
