"""Do the measures measure what they say? Known faults in real pictures, and what each measure makes of them.

    python scripts/validate_measures.py /usr/share/backgrounds --output docs/measures_validated.md
    python scripts/validate_measures.py --embedded --output benchmarks/measures_fashion.md

Random crops of photographs (or Fashion-MNIST with --embedded) are given each fault in five strengths. For each measure
the table has its change in its own standard errors at 500 images, at the strength where a person sees it, and whether
the five changes go one way. Two further sets of crops give the standard errors of untouched pictures.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_tools import setup, table
from PIL import Image, ImageFile
from rich.progress import track
from torch import Tensor
from torch.nn.functional import interpolate, pad

from distill.data.base import load_dataset
from distill.files import write_text
from distill.metrics import MEASURES, Interval, load_extractor, load_perceptual, measure, reference_from_images
from distill.metrics.spectrum import dct_matrix, radial_frequency
from distill.seeds import generator_for

NUM_IMAGES = 500
SIDE = 64
REDUCED = 2  # photographs are halved first, as their own grain and blur are not meant
SUFFIXES = {".jpg", ".jpeg", ".png"}
MIN_SIDE = 600
SEEN = 2  # the place among the five strengths of the one that a person sees
CLEAR = 5.0  # standard errors


@dataclass(frozen=True)
class Fault:
    """apply: images (N, C, H, W) in [-1, 1] and a strength -> faulty ones. strengths: five, ascending."""

    apply: Callable[[Tensor, float], Tensor]
    strengths: tuple[float, ...]


def noise_like(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=generator_for(0, "faults"))


def blur(images: Tensor, sigma: float) -> Tensor:
    reach = int(4 * sigma + 1)
    x = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    rows = images.flatten(0, 1)[:, None]
    for _ in range(2):
        rows = torch.nn.functional.conv2d(pad(rows, (reach, reach, 0, 0), mode="reflect"), kernel).mT
    return rows.view_as(images)


def jpeg(images: Tensor, damage: float) -> Tensor:
    found = []
    for image in images:
        buffer = io.BytesIO()
        pixels = ((image.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).byte().numpy()
        Image.fromarray(pixels.squeeze()).save(buffer, "JPEG", quality=int(100 - damage))
        back = torch.from_numpy(np.array(Image.open(buffer))).float() / 127.5 - 1
        found.append(back.view(*image.shape[1:], -1).permute(2, 0, 1))
    return torch.stack(found)


def salt(images: Tensor, share: float) -> Tensor:
    generator = generator_for(1, "faults")
    hit = torch.rand(images[:, :1].shape, generator=generator) < share
    return torch.where(hit, torch.randn(images[:, :1].shape, generator=generator).sign(), images)


def down_up(images: Tensor, factor: float) -> Tensor:
    size = [max(4, round(side / factor)) for side in images.shape[-2:]]
    small = interpolate(images, size=size, mode="bicubic", antialias=True)
    return interpolate(small, size=images.shape[-2:], mode="bicubic")


def checkerboard(images: Tensor, amplitude: float) -> Tensor:
    height, width = images.shape[-2:]
    return images + amplitude * (-1.0) ** (torch.arange(height)[:, None] + torch.arange(width))


def grid(period: int) -> Callable[[Tensor, float], Tensor]:
    def apply(images: Tensor, amplitude: float) -> Tensor:
        height, width = images.shape[-2:]
        lines = ((torch.arange(height) % period == 1)[:, None] | (torch.arange(width) % period == 1)).float()
        return images + amplitude * (lines - lines.mean())

    return apply


def contrast(images: Tensor, loss: float) -> Tensor:
    mean = images.mean((-3, -2, -1), keepdim=True)
    return mean + (1 - loss) * (images - mean)


def saturation(images: Tensor, gain: float) -> Tensor:
    grey = images.mean(1, keepdim=True)
    return grey + (1 + gain) * (images - grey)


def ringing(images: Tensor, share: float) -> Tensor:
    """Frequencies above a limit cut off, and those just below it doubled in part, as a bad resampling does."""
    height, width = images.shape[-2:]
    down, across = dct_matrix(height).float(), dct_matrix(width).float()
    radius = radial_frequency(height, width)
    gain = torch.where(radius < 0.3, 1 + 2 * share * (radius > 0.15).float(), 1 - share)
    return down.T @ (down @ images @ across.T * gain) @ across


def median(images: Tensor, share: float) -> Tensor:
    windows = pad(images, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    return images + share * (windows.flatten(-2).median(-1).values - images)


def scrambled(images: Tensor, share: float) -> Tensor:
    """Phases above an eighth of a cycle per pixel moved towards random ones; no edge is left at 1."""
    spectrum = torch.fft.fft2(images)
    rows, columns = (torch.fft.fftfreq(side) for side in images.shape[-2:])
    fine = (rows[:, None] ** 2 + columns**2).sqrt() > 0.125
    noise = torch.fft.fft2(noise_like(images)[:, :1]).angle()
    return torch.fft.ifft2(torch.where(fine, spectrum * torch.exp(1j * share * noise), spectrum)).real


def blur_and_grain(images: Tensor, sigma: float) -> Tensor:
    """As much fine power as before: what the blur takes, grain gives back."""
    soft = blur(images, sigma)
    height, width = images.shape[-2:]
    fine = radial_frequency(height, width) >= 0.25
    down, across = dct_matrix(height).float(), dct_matrix(width).float()

    def power(values: Tensor) -> float:
        return float((((down @ values @ across.T) ** 2) * fine).mean())

    noise = noise_like(images)
    return soft + noise * ((power(images) - power(soft)) / power(noise)) ** 0.5


def collapse(images: Tensor, share: float) -> Tensor:
    """A share of the images are copies of one in fifty."""
    few = images[:: max(1, len(images) // 10)]
    count = int(share * len(images))
    return torch.cat([few[torch.arange(count) % len(few)], images[count:]])


FAULTS: dict[str, Fault] = {
    "blur": Fault(blur, (0.3, 0.5, 0.8, 1.2, 2.0)),
    "JPEG": Fault(jpeg, (20, 40, 70, 85, 95)),
    "grain": Fault(lambda x, s: x + s * noise_like(x), (0.02, 0.04, 0.08, 0.16, 0.3)),
    "salt": Fault(salt, (0.001, 0.003, 0.01, 0.03, 0.1)),
    "sharpening": Fault(lambda x, s: x + s * (x - blur(x, 1.0)), (0.2, 0.5, 1.0, 2.0, 4.0)),
    "down and up": Fault(down_up, (1.2, 1.5, 2.0, 3.0, 4.0)),
    "checkerboard": Fault(checkerboard, (0.01, 0.02, 0.05, 0.1, 0.2)),
    **{f"grid of {p}": Fault(grid(p), (0.01, 0.03, 0.08, 0.15, 0.3)) for p in (2, 3, 4, 7, 8, 16)},
    "contrast": Fault(contrast, (0.1, 0.2, 0.3, 0.5, 0.7)),
    "saturation": Fault(saturation, (0.1, 0.25, 0.5, 0.75, 1.0)),
    "ringing": Fault(ringing, (0.1, 0.25, 0.5, 0.75, 1.0)),
    "median": Fault(median, (0.2, 0.4, 0.7, 0.85, 1.0)),
    "phases scrambled": Fault(scrambled, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "blur and grain": Fault(blur_and_grain, (0.3, 0.5, 0.8, 1.2, 2.0)),
    "collapse": Fault(collapse, (0.2, 0.4, 0.6, 0.8, 1.0)),
}
SHIFT = "shift by a pixel"


@dataclass(frozen=True)
class Pictures:
    """images: NUM_IMAGES to be made faulty. others: as many again. reference: others still, to compare with."""

    images: Tensor
    labels: Tensor
    others: Tensor
    other_labels: Tensor
    reference: Tensor
    reference_labels: Tensor


def photographs(folder: Path) -> list[Tensor]:
    """Whole photographs (3, H, W), reduced; PNG pictures of few colours are drawings."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES):
        with Image.open(path) as picture:
            if min(picture.size) < MIN_SIDE * REDUCED or picture.mode not in ("RGB", "L"):
                continue
            rgb = picture.convert("RGB").resize([side // REDUCED for side in picture.size], Image.Resampling.LANCZOS)
        found.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 127.5 - 1)
    return found


def crops(pictures: list[Tensor], num: int, seed: int, side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Crops (num, 3, side + 1, side + 1) with something in them, and the number of the picture of each."""
    generator = generator_for(seed, "crops")
    images: list[Tensor] = []
    while len(images) < num:
        picture = pictures[len(images) % len(pictures)]
        i, j = (int(torch.randint(size - side, (1,), generator=generator)) for size in picture.shape[1:])
        crop = picture[:, i : i + side + 1, j : j + side + 1]
        if crop.std() > 0.05:
            images.append(crop)
    return torch.stack(images), torch.arange(num) % len(pictures)


def pictures_of(folder: Path | None) -> tuple[Pictures, Tensor]:
    """The sets, and the first of them shifted by a pixel."""
    if folder is None:
        data = load_dataset("idx", "/usr/share/datasets/fashion-mnist", "train")
        order = torch.randperm(len(data), generator=generator_for(0, "crops"))[: 6 * NUM_IMAGES]
        images, labels = data.batch(order, lambda shape: torch.zeros(shape))
        shifted = torch.roll(images[:NUM_IMAGES], (1, 1), (-2, -1))
        wide = images
    else:
        found = photographs(folder)
        if len(found) < 8:
            sys.exit(
                f"validate_measures: error: {folder} has {len(found)} photographs of {MIN_SIDE * REDUCED} pixels; "
                "8 are needed"
            )
        wide, labels = crops(found, 6 * NUM_IMAGES, 0)
        shifted, images = wide[:NUM_IMAGES, :, 1:, 1:], wide[:, :, :-1, :-1]
    n = NUM_IMAGES
    parts = [part[first:last] for first, last in ((0, n), (n, 2 * n), (2 * n, None)) for part in (images, labels)]
    return Pictures(*parts), shifted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of photographs, with all folders in it")
    parser.add_argument("--embedded", action="store_true", help="Fashion-MNIST instead, with the shipped classifier")
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parser.parse_args()
    pictures, shifted = pictures_of(None if args.embedded else args.folder)
    text = report(pictures, shifted, args.embedded)
    print(text)
    if args.output:
        write_text(args.output, text)


@dataclass(frozen=True)
class Found:
    """Changes in standard errors by strength, and the values by strength."""

    changes: list[float]
    values: list[float]

    @property
    def is_monotone(self) -> bool:
        steps = np.diff(np.abs(self.changes))
        return bool((steps > -1).all())


def validate(pictures: Pictures, shifted: Tensor, embedded: bool) -> dict[str, dict[str, Found]]:
    """By fault and measure."""
    extractor = load_extractor("embedded") if embedded else None
    perceptual = None
    if embedded:
        perceptual = load_perceptual(tuple(pictures.images.shape[1:]), extractor, offline=True)
    reference = reference_from_images(
        pictures.reference, pictures.reference_labels, extractor, "held-out pictures", perceptual=perceptual
    )

    def measured(images: Tensor, labels: Tensor = pictures.labels) -> dict[str, Interval]:
        return measure(
            images.clamp(-1, 1), labels, data=reference, extractor=extractor, lpips=perceptual,
            paired_to=pictures.images, num_bootstrap=100,
        )  # fmt: skip

    clean = measured(pictures.images)
    names = [key for key, value in clean.items() if MEASURES[key].has_interval and value.low == value.low]
    sets = {name: [fault.apply(pictures.images, s) for s in fault.strengths] for name, fault in FAULTS.items()}
    sets[SHIFT] = [shifted]
    if pictures.images.shape[1] == 1:
        del sets["saturation"]
    found: dict[str, dict[str, Found]] = {}
    for name, strengths in track(sets.items(), description="faults"):
        values = [measured(images) for images in strengths]
        found[name] = {key: changes(key, clean, values) for key in names}
    others = [measured(pictures.others, pictures.other_labels)]
    return found | {"other pictures": {key: changes(key, clean, others) for key in names}}


def changes(key: str, clean: dict[str, Interval], values: list[dict[str, Interval]]) -> Found:
    """In standard errors of the clean pictures and of the faulty ones together."""
    numbers, steps = [], []
    for value in values:
        one, other = clean[key], value.get(key, Interval(float("nan"), float("nan"), float("nan")))
        error = (_error(one) ** 2 + _error(other) ** 2) ** 0.5
        numbers.append(other.value)
        steps.append((other.value - one.value) / error if error > 0 else float("nan"))
    return Found(steps, numbers)


def _error(interval: Interval) -> float:
    return (interval.high - interval.low) / (2 * 1.96)


def report(pictures: Pictures, shifted: Tensor, embedded: bool) -> str:
    found = validate(pictures, shifted, embedded)
    names = list(next(iter(found.values())))
    rows = []
    for fault, by_measure in found.items():
        place = SEEN if len(next(iter(by_measure.values())).changes) > 1 else 0
        cells = [f"{by_measure[n].changes[place]:+.0f}{'' if by_measure[n].is_monotone else '~'}" for n in names]
        rows.append([fault, *(cell.replace("+nan", "").replace("nan", "").replace("~", " ~") for cell in cells)])
    best = []
    for fault, by_measure in found.items():
        if fault not in (SHIFT, "other pictures"):
            by_itself = {n: f.changes[SEEN] for n, f in by_measure.items() if MEASURES[n].kind != "paired"}
            sizes = {n: abs(change) for n, change in by_itself.items() if change == change}
            name = max(sizes, key=lambda n: sizes[n])
            seen = [n for n, size in sizes.items() if size >= CLEAR]
            best.append(
                [
                    fault,
                    f"{FAULTS[fault].strengths[SEEN]:g}",
                    MEASURES[name].title,
                    f"{sizes[name]:.0f}",
                    str(len(seen)),
                ]
            )
    header = ["fault", "strength", "measure", "standard errors", f"measures moved by {CLEAR:g} or more"]
    kind = "Fashion-MNIST" if embedded else "photographs"
    return (
        f"# What the measures make of known faults: {kind}\n\n{setup('cpu')}; {NUM_IMAGES} pictures of "
        f"{' x '.join(map(str, pictures.images.shape[1:]))}.\n\n"
        "Each fault at the middle of five strengths, the one that a person sees, and the measure that it moves most "
        "(without those that compare picture by picture):\n\n"
        f"{table(header, best)}\n\n"
        "Every measure: its change in its own standard errors; ~ where the five strengths do not move it one way.\n\n"
        f"{table(['fault', *(MEASURES[n].title for n in names)], rows)}\n"
    )


if __name__ == "__main__":
    main()
