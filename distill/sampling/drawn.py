"""Images kept on disk while they are drawn, so that drawing that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from distill.conditions import ConditionBatch, num_rows
from distill.errors import UserError, reading
from distill.files import write_text
from distill.files.bounded import new_npy
from distill.latents.decoding import Decoder
from distill.models import Backbone
from distill.processes import Processes
from distill.sampling.drawing import check_drawn, draw_batches
from distill.sampling.samplers import Sampler


class DrawnImages:
    """A memory-mapped array `name.npy` of all images of a drawing, and `name.json`: what it is of and how far it is.

    done: how many images are there. seconds: what drawing them took, of all processes together.
    """

    def __init__(
        self, stem: Path | None, made_of: dict[str, Any], shape: tuple[int, ...], dtype: type[np.generic]
    ) -> None:
        """
        Args:
            stem: the files' path without the ending; they go on where they hold a part of the same drawing. None keeps
                the images in memory.
            made_of: all that the images depend on, in JSON's types.
            shape: (N, ...) of the whole array.

        Raises: UserError where the files hold another drawing; it names what differs.
        """
        self._made_of = made_of
        self._stem = stem
        self.done, self.seconds = 0, 0.0
        if stem is None:
            self.array = np.empty(shape, dtype)
            return
        self.done, self.seconds = _progress(_state_file(stem), made_of)
        stem.parent.mkdir(parents=True, exist_ok=True)
        file = _array_file(stem)
        self.array = np.lib.format.open_memmap(file, "r+") if self.done else new_npy(file, dtype, shape)

    def append(self, images: np.ndarray, seconds: float) -> None:
        self.array[self.done : self.done + len(images)] = images
        self.done += len(images)
        self.seconds += seconds
        if isinstance(self.array, np.memmap) and self._stem is not None:
            self.array.flush()  # first: the file must not say more than there is
            state = {**self._made_of, "done": self.done, "seconds": self.seconds}
            write_text(_state_file(self._stem), json.dumps(state))

    def remove(self) -> None:
        if self._stem is not None:
            _array_file(self._stem).unlink()
            _state_file(self._stem).unlink()


def draw_all(
    drawn: DrawnImages | None,
    sampler: Sampler,
    y: ConditionBatch,
    *,
    seed: int,
    batch_size: int,
    decoder: Decoder,
    stored_as: Callable[[Tensor], Tensor],
    progress: Progress,
) -> None:
    """Draw what `drawn` lacks, one image per row of `y`. All processes call this; the main one has `drawn`.

    Args:
        stored_as: images (B, C, H, W), not clamped -> rows of the array.
    """
    processes = Processes.all()
    start = processes.agreed(drawn.done if drawn else 0)
    bar = progress.add_task(f"drawing: {sampler.name}", total=num_rows(y), completed=start)
    batches = draw_batches(
        sampler, y, seed=seed, batch_size=batch_size, decoder=decoder, start=start, processes=processes
    )
    for images, seconds in batches:
        check_drawn(images, sampler)
        if drawn:
            drawn.append(stored_as(images).numpy(), seconds * processes.number)
        progress.advance(bar, len(images))


def _array_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.npy")


def _state_file(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.json")


def _progress(file: Path, made_of: dict[str, Any]) -> tuple[int, float]:
    """Images and seconds that a state file speaks of; none without a file."""
    if not file.is_file():
        return 0, 0.0
    with reading(file, "is damaged, remove it to start anew"):
        state = json.loads(file.read_bytes())
        done, seconds = int(state.pop("done")), float(state.pop("seconds"))
    different = [name for name, value in made_of.items() if state.get(name) != value]
    if different:
        name = different[0]
        raise UserError(
            f"{file}: {done} images were drawn with {name} = {state.get(name)!r}; now it is {made_of[name]!r}. Remove "
            "the file to start anew"
        )
    return done, seconds


def weights_hash(model: Backbone) -> str:
    """SHA-256 of all values of a model, which tells it from the same model trained further."""
    digest = hashlib.sha256()
    for name, value in cast(nn.Module, model).state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
