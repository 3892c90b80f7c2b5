"""Grid artefacts: steps between neighbouring pixels that are larger, or of one sign, every p pixels.

The steps along a row, x(i + 1) - x(i), are averaged over rows, channels and images, with their sign and without it; so
are those down a column. A grid stands still while what is shown changes, so it adds up and pictures do not. Each mean
profile, less its moving average over p steps, is folded to one period; the score of p is the RMS of the folded profiles
of both signs and directions over the mean size of a step. The seams of patches show in the sizes, whatever their
sign, lines of one colour in the signs, and neither depends on where the grid begins.

Limits: a period must fit four times into the side; a grid that is elsewhere in each image is not found; sets of centred
objects have a score of their own, so compare with the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval
from distill.metrics.images import check_images
from distill.metrics.registry import Context, measure_of, register_measure
from distill.metrics.tables import register_table

PERIODS = range(2, 17)
AS_GOOD = 0.8  # of the best score: the smallest such period is the grid's, as its multiples score nearly as well


@register_table
def steps(images: Tensor) -> Tensor:
    """Mean size of the steps along a row at each place, their mean, the same down a column, and H and W.

    [N, 2 (W - 1) + 2 (H - 1) + 2].
    """
    check_images(images)
    height, width = images.shape[-2:]
    along, down = images.diff(dim=-1), images.diff(dim=-2)
    profiles = [along.abs().mean((1, 2)), along.mean((1, 2)), down.abs().mean((1, 3)), down.mean((1, 3))]
    sides = torch.tensor([float(height), float(width)], device=images.device).expand(len(images), 2)
    return torch.cat([*profiles, sides], dim=1)


def grid_scores(row: Tensor) -> dict[int, float]:
    """Score of each period that fits, from a mean row of `steps`; none for images without steps."""
    height, width = (round(side) for side in row[-2:].tolist())
    profiles = row[:-2].double().split([width - 1, width - 1, height - 1, height - 1])
    size = float(profiles[0].mean() + profiles[2].mean()) / 2
    if not size:
        return {}
    fitting = [period for period in PERIODS if 4 * period <= min(height, width)]
    return {
        period: float(torch.stack([_folded(profile, period).square().mean() for profile in profiles]).mean().sqrt())
        / size
        for period in fitting
    }


def _folded(profile: Tensor, period: int) -> Tensor:
    """One period of a profile, less its moving average over a period: mean over all periods that are whole."""
    weights = torch.ones(period + 1 - period % 2, dtype=profile.dtype)
    if period % 2 == 0:
        weights[0] = weights[-1] = 0.5
    reach = len(weights) // 2
    inner = profile.unfold(0, len(weights), 1) @ weights / weights.sum()
    rest = profile[reach : len(profile) - reach] - inner
    whole = len(rest) // period
    return rest[: whole * period].view(whole, period).mean(0)


@measure_of(
    "steps",
    "spectrum",
    "Grid",
    unit="share of a step",
    explanation="how much the steps between pixels vary with their place in a period, where they do most; "
    "more than the data: the grid of patches",
)
def grid(row: Tensor) -> float:
    return max(grid_scores(row).values(), default=float("nan"))


@register_measure(
    "spectrum",
    "Period of that grid",
    unit="pixels",
    ideal="none",
    explanation="of no meaning where the grid is as the data's",
    has_interval=False,
)
def grid_period(context: Context) -> Interval | None:
    scores = grid_scores(context.table("steps").double().mean(0))
    if not scores:
        return None
    best = max(scores.values())
    period = min(period for period, score in scores.items() if score >= AS_GOOD * best)
    return Interval(float(period), float("nan"), float("nan"))
