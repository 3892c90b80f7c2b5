"""Model to one .npz file in the format of ADM's evaluation suite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from distill.errors import UserError, writing
from distill.files import temporary_name
from distill.latents.decoding import decoder_for
from distill.processes import Processes
from distill.progress import progress_bar
from distill.render import to_uint8
from distill.sampling import Sampler, describe, in_precision
from distill.sampling.drawn import DrawnImages, draw_all, weights_hash
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
    mixed_precision: str = "no",
) -> Path:
    """Draw `num_images` into `file`: `arr_0`, uint8 (N, H, W, 3), and `arr_1`, the labels; grey is repeated.

    Until all are drawn they are kept beside it under a hidden name; a call with the same arguments goes on from there.
    The images are those that `sample` draws.

    Raises: UserError if the file exists, if samples are videos, or if what lies beside it was begun with other
        arguments.
    """
    file = Path(file).expanduser().resolve()
    if file.suffix != ".npz":
        raise UserError(f"--npz {file} must end in .npz")
    if file.exists():
        raise UserError(f"--npz {file} exists; choose another or remove it")
    sampler = in_precision(model if isinstance(model, Sampler) else load(model), mixed_precision)
    y = conditions_for(sampler.condition, num_images, classes)
    device = next(sampler.model.parameters()).device
    vae = vae_of(vae, [sampler.path])
    decoder = decoder_for(vae, sampler.model.sample_shape, device)
    shape = decoder.image_shape(sampler.model.sample_shape)
    if len(shape) != 3:
        raise UserError(
            f"--npz {file} would hold pictures, as ADM's suite has them; the samples are videos {list(shape)}"
        )
    _, height, width = shape
    drawn = None
    if Processes.all().is_main:
        made_of = {
            "sampler": describe(sampler, decoder),
            "weights": weights_hash(sampler.model),
            "vae": vae,
            "classes": None if classes is None else [str(name) for name in classes],
            "seed": seed,
            "num_images": num_images,
        }
        stem = file.with_name(f".{file.name}.partial")
        drawn = DrawnImages(stem, made_of, (num_images, height, width, 3), np.uint8)
    with progress_bar(main_process=drawn is not None) as progress:
        draw_all(
            drawn,
            sampler,
            y,
            seed=seed,
            batch_size=batch_size,
            decoder=decoder,
            stored_as=_as_adm_has_them,
            progress=progress,
        )
    if drawn:
        _write(file, drawn.array, sampler.condition.groups(y).numpy())
        drawn.remove()
    return file


def _as_adm_has_them(images: Tensor) -> Tensor:
    return to_uint8(images).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _write(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    whole = temporary_name(file)
    with writing(file):
        try:
            with whole.open("xb") as opened:
                np.savez(opened, arr_0=images, arr_1=labels)
            whole.replace(file)
        except BaseException:
            whole.unlink(missing_ok=True)
            raise
