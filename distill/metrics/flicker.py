"""Flicker of videos: how much of what changes from one frame to the next is taken back by the one after.

Of each value, with a = x(f) - x(f - 1) and b = x(f + 1) - x(f),

    flicker = sum of min(|a|, |b|) where a b < 0  /  sum of (|a| + |b|) / 2

over places, channels, frames and videos. It is 0 where values go one way: as an edge passes, a shadow falls, a scene
is cut. Noise that is independent from frame to frame has 1/2, whatever its distribution (of three values the middle one
in time is an extreme with a probability of 2/3, and then its lesser step is half their range, on average; a step is 2/3
of it), and what alternates has 1. A sinusoid that moves by a phase phi < pi a frame has 1 - cos(phi / 2): 0.02 at a
sixteenth of its period, 0.29 at a quarter. Second differences over first ones, the usual ratio of fast to slow change,
see motion as well: an edge that passes has 2/3 of white noise's power there.

Changes below half an 8-bit step count as none: else the rounding of a video that stands still would be its flicker.

Limits: what is narrower than its own way from frame to frame comes and goes, and counts; motion of few frames a second
has more of it, so compare with the teacher at the same rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.metrics.registry import measure_of, quotient
from distill.metrics.tables import register_video_table

UNSEEN = 1 / 255  # half an 8-bit step, of a range of 2


@register_video_table
def changes(videos: Tensor) -> Tensor:
    """What is taken back, what it is a share of, and the mean size of a change; nan for too few frames, [N, 3]."""
    steps = videos.diff(dim=2)
    sizes = steps.abs()
    motion = sizes.flatten(1).mean(1)
    sizes = torch.where(sizes < UNSEEN, 0.0, sizes)
    before, after = sizes[:, :, :-1], sizes[:, :, 1:]
    turns = steps[:, :, :-1] * steps[:, :, 1:] < 0
    back = (torch.minimum(before, after) * turns).flatten(1).mean(1)
    return torch.stack([back, (before + after).flatten(1).mean(1) / 2, motion], dim=1)


@measure_of(
    "changes",
    "time",
    "Flicker",
    unit="share of change",
    explanation="share of the change from one frame to the next that the frame after takes back: 0 where all moves "
    "on, 0.5 for noise, 1 where frames alternate; more than the data: flicker, less: too smooth",
)
def flicker(row: Tensor) -> float:
    return quotient(row[:2]) if row[1] else 0.0


@measure_of(
    "changes",
    "time",
    "Change from frame to frame",
    unit="image units",
    explanation="mean size of the change of a value from one frame to the next; less than the data: stands still",
)
def motion(row: Tensor) -> float:
    return float(row[2])
