"""Edges: how wide they are, how many, and how steep pixels are altogether.

An edge is a run of neighbouring pixels along a row or a column whose values only rise or only fall, by `MIN_RISE` of
the range of values or more, where the gradient lies along the run. Its width is its rise over its steepest
difference: 1 for a step, about 2.5 sigma for a step under a Gaussian blur of sigma. All of the mean over channels.

Gradients are Sobel's, divided by 8: a ramp of slope s has gradient s, in image units (range 2) per pixel. Only pixels
with all eight neighbours count.

Limits: an edge of low contrast is none, so contrast moves the count; strong grain breaks runs, which lowers the count
and, slightly, the width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from distill.metrics.images import check_images, grey
from distill.metrics.registry import distance_of, measure_of
from distill.metrics.tables import register_table

MIN_RISE = 0.25  # image units, an eighth of the range
MAX_WIDTH = 12.0  # pixels, of the histogram
WIDTH_BINS = 48
MAX_MAGNITUDE = 2**0.5  # each component of the gradient of an image in [-1, 1] is at most 1
NUM_BINS = 512
BIN_WIDTH = MAX_MAGNITUDE / NUM_BINS


def gradients(images: Tensor) -> Tensor:
    """Horizontal and vertical Sobel gradient, image units per pixel, [N, 2, H - 2, W - 2]."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    along_x = smooth[:, None] * slope / 8
    kernels = torch.stack([along_x, along_x.T])[:, None].to(images)
    return conv2d(grey(images)[:, None], kernels)


@register_table
def gradient_histogram(images: Tensor) -> Tensor:
    """Share of the pixels in each bin of gradient magnitude, [N, 512]; equal bins cover [0, sqrt 2].

    Larger magnitudes, of images outside [-1, 1], count in the last bin.
    """
    check_images(images)
    magnitude = gradients(images.float()).square().sum(1).sqrt().flatten(1)
    bins = (magnitude / BIN_WIDTH).long().clamp_max(NUM_BINS - 1)
    counts = torch.zeros(len(magnitude), NUM_BINS, device=magnitude.device)
    counts.scatter_add_(1, bins, torch.ones_like(magnitude))
    return counts / magnitude.shape[1]


@register_table
def edge_widths(images: Tensor) -> Tensor:
    """Edges per pixel, the sum of their widths per pixel, then the shares of edges by width: [N, 2 + 48]."""
    check_images(images)
    image = grey(images.float())
    along, down = gradients(images.float()).abs().unbind(1)
    along, down = (
        torch.nn.functional.pad(part[:, None], (1, 1, 1, 1), mode="replicate")[:, 0] for part in (along, down)
    )
    tables = [_edges_along_rows(image, along >= down), _edges_along_rows(image.mT, (down > along).mT)]
    counts = tables[0] + tables[1]
    return counts / image[0].numel()


def _edges_along_rows(image: Tensor, allowed: Tensor) -> Tensor:
    """Number of edges, the sum of widths and the histogram of widths, [N, 2 + 48], of runs along the last axis.

    allowed: [N, H, W], pixels whose gradient lies along a row.
    """
    step = image.diff(dim=-1)  # [N, H, W - 1]
    sign = step.sign()
    begins = torch.ones_like(sign, dtype=torch.bool)
    begins[..., 1:] = sign[..., 1:] != sign[..., :-1]
    run = begins.flatten().long().cumsum(0) - 1  # a number for each run of all images; rows begin anew
    num = int(run[-1]) + 1
    rise = torch.zeros(num, device=image.device).scatter_add_(0, run, step.flatten()).abs()
    steepest = torch.zeros(num, device=image.device).scatter_reduce_(0, run, step.abs().flatten(), "amax")
    # The run belongs to this direction if its steepest step does.
    here = (allowed[..., 1:] | allowed[..., :-1]) & (step.abs() == steepest[run].view_as(step))
    is_edge = torch.zeros(num, dtype=torch.bool, device=image.device)
    is_edge[run[here.flatten()]] = True
    is_edge &= rise >= MIN_RISE
    owner = torch.zeros(num, dtype=torch.long, device=image.device)
    owner[run] = torch.arange(len(image), device=image.device).repeat_interleave(step[0].numel())
    width, owner = rise[is_edge] / steepest[is_edge], owner[is_edge]
    table = torch.zeros(len(image), 2 + WIDTH_BINS, device=image.device)
    table[:, 0].scatter_add_(0, owner, torch.ones_like(width))
    table[:, 1].scatter_add_(0, owner, width)
    bins = (width / MAX_WIDTH * WIDTH_BINS).long().clamp_max(WIDTH_BINS - 1)
    table.view(-1).scatter_add_(0, owner * table.shape[1] + 2 + bins, torch.ones_like(width))
    return table


@measure_of(
    "edge_widths",
    "edges",
    "Edge width",
    unit="pixels",
    explanation="mean rise of an edge over its steepest step; wider than the data: blur, narrower: sharpening",
)
def edge_width(row: Tensor) -> float:
    return float(row[1] / row[0]) if row[0] else float("nan")


@measure_of(
    "edge_widths",
    "edges",
    "Edges",
    unit="per 1000 pixels",
    explanation="number of edges with a contrast of an eighth of the range; blur and low contrast take some away, "
    "grain and patterns add some",
)
def edge_count(row: Tensor) -> float:
    return 1000 * float(row[0])


@distance_of(
    "gradient_histogram",
    "edges",
    "Gradient distance to data",
    unit="image units per pixel",
    to="data",
    explanation="Wasserstein distance of the Sobel gradients' distributions; too flat, too steep alike",
)
def gradient_distance(row: Tensor, target: Tensor) -> float:
    """Wasserstein-1 distance of two mean rows of `gradient_histogram`: the area between their CDFs."""
    return float((row.double() - target.double()).cumsum(0).abs().sum() * BIN_WIDTH)
