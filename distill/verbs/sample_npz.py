"""Model to one .npz file in the format of ADM's evaluation suite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.files import write_text
from distill.latents.decoding import decoder_for
from distill.progress import progress_bar
from distill.render import to_uint8
from distill.sampling import Sampler, draw_batches
from distill.verbs.load import load, vae_of
from distill.verbs.sample import conditions_for

NUM_IMAGES = 50_000


def sample_npz(
    model: str | Path | Sampler,
    file: str | Path,
    num_images: int = NUM_IMAGES,
    *,
    classes: Sequence[int | str] | None = None,
    seed: int = 1,
    batch_size: int = 250,
    vae: str | None = None,
) -> Path:
    """Draw `num_images` into `file`: `arr_0`, uint8 (N, H, W, 3), and `arr_1`, the labels; grey is repeated.

    Until all are drawn they are kept beside it under a hidden name; a call with the same arguments goes on from there.
    The images are those that `sample` draws.

    Raises: UserError if the file exists, or if what lies beside it was begun with other arguments.
    """
    file = Path(file).expanduser().resolve()
    if file.suffix != ".npz":
        raise UserError(f"--npz {file} must end in .npz")
    if file.exists():
        raise UserError(f"--npz {file} exists; choose another or remove it")
    sampler = model if isinstance(model, Sampler) else load(model)
    y = conditions_for(sampler.condition, num_images, classes)
    device = next(sampler.model.parameters()).device
    decoder = decoder_for(vae_of(vae, [sampler.path]), sampler.model.sample_shape, device)
    _, height, width = decoder.image_shape(sampler.model.sample_shape)
    made_of = {
        "model": str(Path(sampler.path).resolve()) if sampler.path else "",
        "sampler": ", ".join(part for part in (sampler.description, decoder.note) if part),
        "classes": None if classes is None else [str(name) for name in classes],
        "seed": seed,
        "num_images": num_images,
    }
    drawn = _Partial(file, made_of, (num_images, height, width, 3))
    with progress_bar() as progress:
        bar = progress.add_task("drawing", total=num_images, completed=drawn.done)
        batches = draw_batches(sampler, y, seed=seed, batch_size=batch_size, decoder=decoder, start=drawn.done)
        for images, _ in batches:
            drawn.append(to_uint8(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy())
            progress.advance(bar, len(images))
    drawn.finish(sampler.condition.groups(y).numpy())
    return file


class _Partial:
    """The images drawn so far, in a memory-mapped array, with what they are made of and how many there are."""

    def __init__(self, file: Path, made_of: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.file = file
        self._array_path = file.with_name(f".{file.name}.partial.npy")
        self._state_path = file.with_name(f".{file.name}.partial.json")
        self._made_of = made_of
        self.done = self._found()
        file.parent.mkdir(parents=True, exist_ok=True)
        mode = "r+" if self.done else "w+"
        self._array = np.lib.format.open_memmap(self._array_path, mode, np.uint8, shape)

    def _found(self) -> int:
        if not self._state_path.is_file():
            return 0
        try:
            state = json.loads(self._state_path.read_text())
            done = int(state.pop("done"))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._state_path} is damaged: {error}; remove it to start anew") from error
        different = [name for name, value in self._made_of.items() if state.get(name) != value]
        if different:
            raise UserError(
                f"--npz {self.file}: {done} images were drawn with another {different[0]}, "
                f"{state.get(different[0])!r}; remove {self._state_path} to start anew"
            )
        return done

    def append(self, images: np.ndarray) -> None:
        self._array[self.done : self.done + len(images)] = images
        self._array.flush()
        self.done += len(images)
        write_text(self._state_path, json.dumps({**self._made_of, "done": self.done}))

    def finish(self, labels: np.ndarray) -> None:
        whole = self.file.with_name(f".{self.file.name}.partial")
        with whole.open("wb") as opened:
            np.savez(opened, arr_0=self._array, arr_1=labels)
        whole.replace(self.file)
        self._array_path.unlink()
        self._state_path.unlink()
