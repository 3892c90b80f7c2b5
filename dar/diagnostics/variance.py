"""How much of a quantity's variance t, the class, the image and the token position explain.

The design is balanced: every image is seen at every t, each image has all token positions, and each class has
as many images. The total variance is then the sum of the variances of the marginal means and a rest:

    Var(x) = V_t + V_class + V_image + V_position + V_rest

V_t is the variance over t of the mean of x over all else, and so on; V_image is that of the images around the
mean of their class; V_rest holds all interactions. With B images of K classes, images that differ by chance alone
put V_image (K - 1) / (B - K) into V_class on average.

Legend: N sources, n_t times, B images, K classes, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EFFECTS = ("t", "class", "image", "position", "rest")


@dataclass(frozen=True, eq=False)
class Marginals:
    """What main effects need of x (N, n_t, B, T): means in float64, so that a large design need not be stored.

    square: of x^2, (N). by_t (N, n_t). by_image (N, B). by_position (N, T).
    """

    square: Tensor
    by_t: Tensor
    by_image: Tensor
    by_position: Tensor


def effect_variances(marginals: Marginals, classes: Tensor) -> Tensor:
    """(N, 5): variances in the order of `EFFECTS`; their sum over the last axis is the total variance.

    Args:
        classes: of the images, (B) int64, each as often as every other.

    Raises: ValueError where the classes are not balanced.
    """
    _, members, counts = classes.unique(return_inverse=True, return_counts=True)
    if len(counts.unique()) > 1:
        raise ValueError(f"the design is not balanced: classes have {counts.tolist()} images")
    num_sources = len(marginals.by_image)
    class_sums = marginals.by_image.new_zeros(num_sources, len(counts)).index_add_(1, members, marginals.by_image)
    class_means = class_sums / counts[0]
    within = (marginals.by_image - class_means[:, members]).square().mean(1)
    effects = [_variance(marginals.by_t), _variance(class_means), within, _variance(marginals.by_position)]
    total = marginals.square - marginals.by_t.mean(1).square()
    variances = torch.stack([*effects, (total - sum(effects)).clamp(min=0)], dim=1)
    # Where nothing varies, what is left is rounding: of x, and of the difference of two squares.
    return variances * (total > 1e-12 * marginals.square).unsqueeze(1)


def variance_shares(variances: Tensor) -> Tensor:
    """Shares of the total (.., 5), over however many sources and readers (.., 5) is summed; nan where none varies."""
    return variances / variances.sum(-1, keepdim=True)


def _variance(means: Tensor) -> Tensor:
    return (means - means.mean(1, keepdim=True)).square().mean(1)


class RunningMarginals:
    """`Marginals` batch by batch: each (t, image) is to be added once."""

    def __init__(self, num_t: int, num_images: int) -> None:
        self._num_t, self._num_images = num_t, num_images
        self._sums: dict[str, Tensor] = {}

    def add(self, x: Tensor, t_index: int, images: slice) -> None:
        """x (N, b, T) of a batch of images at one t."""
        x = x.detach().double().cpu()
        num_sources, _, num_tokens = x.shape
        if not self._sums:
            sizes = {"by_t": self._num_t, "by_image": self._num_images, "by_position": num_tokens}
            self._sums = {name: x.new_zeros(num_sources, size) for name, size in sizes.items()}
            self._sums["square"] = x.new_zeros(num_sources)
        self._sums["square"] += x.square().mean(2).sum(1) / (self._num_t * self._num_images)
        self._sums["by_t"][:, t_index] += x.mean(2).sum(1) / self._num_images
        self._sums["by_image"][:, images] += x.mean(2) / self._num_t
        self._sums["by_position"] += x.sum(1) / (self._num_t * self._num_images)

    def result(self) -> Marginals:
        return Marginals(**self._sums)
