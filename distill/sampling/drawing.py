"""Seeded drawing: image i of a seed depends neither on the batch size nor on the number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from distill.conditions import ConditionBatch, num_rows, take_rows, to_device
from distill.errors import UserError
from distill.latents.decoding import PIXELS, Decoder
from distill.models import Backbone
from distill.processes import ALONE, Processes
from distill.sampling.samplers import Sampler
from distill.seeds import generator_for

LARGEST = 1e4  # of an image in [-1, 1]

M = TypeVar("M", bound=Backbone)


def in_precision(sampler: Sampler[M], precision: str) -> Sampler[M]:
    """The sampler with its network in bf16 autocast for `bf16`, and as it is for `no`; x_t stays in float32."""
    if precision == "no":
        return sampler

    def draw(noise: Tensor, y: ConditionBatch) -> Tensor:
        with torch.autocast(noise.device.type, torch.bfloat16):
            return sampler.draw(noise, y)

    return replace(sampler, draw=draw, description=f"{sampler.description}, in bf16")


def describe(sampler: Sampler, decoder: Decoder) -> str:
    """Everything that defines the images except the weights: the sampler and the decoder of its samples."""
    return ", ".join(part for part in (sampler.description, decoder.note) if part)


def check_drawn(images: Tensor, sampler: Sampler) -> None:
    """See that images, not clamped, are of some use. Raises: UserError: NaN would be shown black, and 1e30 white."""
    if not bool((images.abs() < LARGEST).all()):
        raise UserError(
            f"{sampler.path or sampler.name} draws values that are not finite or beyond {LARGEST:g}, where pictures "
            "have 1: its weights, its timesteps or its guidance are of no use"
        )


def noise_for(indices: Sequence[int] | range, num_noises: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Noise (K, B, *shape). Noise k of image i depends only on (seed, i, k)."""
    rows = [
        [torch.randn(shape, generator=generator_for(seed, "sample", i, k)) for i in indices] for k in range(num_noises)
    ]
    return torch.stack([torch.stack(row) for row in rows])


@torch.no_grad()
def draw_batches(
    sampler: Sampler,
    y: ConditionBatch,
    *,
    seed: int,
    batch_size: int,
    decoder: Decoder = PIXELS,
    start: int = 0,
    processes: Processes = ALONE,
) -> Iterator[tuple[Tensor, float]]:
    """Draw images start, start + 1, .. of a seed, one per row of `y` from row `start` on, not clamped.

    Args:
        batch_size: images at once in each of `processes`, which share every batch.

    Yields: images (B, C, H, W) on the CPU, in every process, and the seconds that this one's drawing and decoding took,
        without the noise.
    """
    device = next(sampler.model.parameters()).device
    num_images = num_rows(y)
    together = batch_size * processes.number
    for first in range(start, num_images, together):
        last = min(first + together, num_images)
        mine = processes.share(first, last)
        noise = noise_for(mine.tolist(), sampler.num_noises, sampler.model.sample_shape, seed).to(device)
        batch = to_device(take_rows(y, mine), device)
        started = time.perf_counter()
        images = decoder.decode(sampler.draw(noise, batch).float())
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds = time.perf_counter() - started
        yield processes.gather(images)[: last - first].cpu(), seconds


def draw_images(
    sampler: Sampler,
    y: ConditionBatch,
    *,
    seed: int,
    batch_size: int,
    decoder: Decoder = PIXELS,
    advance: Callable[[int], object] = lambda _: None,
    processes: Processes = ALONE,
) -> tuple[Tensor, float]:
    """Draw one image per row of `y`, as `draw_batches`. With `PIXELS` they are the samples themselves.

    Args:
        advance: called after each batch with its number of images.

    Returns: images (N, C, H, W) on the CPU, in every process, and images per second of one process.
    """
    batches: list[Tensor] = []
    seconds = 0.0
    drawn = draw_batches(sampler, y, seed=seed, batch_size=batch_size, decoder=decoder, processes=processes)
    for images, taken in drawn:
        batches.append(images)
        seconds += taken
        advance(len(images))
    return torch.cat(batches), num_rows(y) / processes.number / seconds
