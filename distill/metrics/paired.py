"""Images beside the teacher's from the same noise and condition: what distillation did to each single picture.

LPIPS is lpips'; SSIM (Wang et al. 2004) and MS-SSIM (2003) are torchmetrics', Canny's edges scikit-image's. A student
by distribution matching owes its teacher the distribution, not the picture, so these say how far it went, not how bad
it is; where the low frequencies differ it made another picture, and the others say nothing.

Limits: all see a shift by one pixel as a difference, the edge F-score least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.metrics.bootstrap import Interval
from distill.metrics.images import AT_ONCE, by_parts, grey
from distill.metrics.registry import Context, register_measure
from distill.metrics.spectrum import dct_matrix, radial_frequency

RANGE = 2.0  # of values
FEW = AT_ONCE // 4  # values at once, of what keeps several copies
KERNEL = 11  # pixels, of SSIM
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM's five
LOW = 1 / 16  # cycles per pixel
CANNY_SIGMA = 1.0
TOLERANCE = 1  # pixels, of the place of an edge


@register_measure(
    "paired",
    "LPIPS to the teacher's image",
    unit="perceptual distance",
    ideal="lower",
    explanation="mean LPIPS (or its stand-in) to the teacher's image from the same noise and label",
)
def lpips_to_teacher(context: Context) -> Interval | None:
    if context.perceptual is None or context.pair is None:
        return None
    return context.of_values(by_parts(context.perceptual.distance, *context.pair))


@register_measure(
    "paired",
    "SSIM to the teacher's image",
    ideal="higher",
    explanation="structural similarity, 1 for equal images",
)
def ssim_to_teacher(context: Context) -> Interval | None:
    if context.pair is None or min(context.images.shape[-2:]) < KERNEL:
        return None
    from torchmetrics.functional.image import structural_similarity_index_measure

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        found = structural_similarity_index_measure(a, b, data_range=RANGE, reduction="none")
        assert isinstance(found, Tensor)
        return found

    return context.of_values(by_parts(similarity, *context.pair, at_once=FEW))


@register_measure(
    "paired",
    "MS-SSIM to the teacher's image",
    ideal="higher",
    explanation="structural similarity at as many of five scales as fit, 1 for equal images",
)
def ms_ssim_to_teacher(context: Context) -> Interval | None:
    # torchmetrics wants more than (kernel - 1) 2^(scales - 1) pixels.
    side = min(context.images.shape[-2:])
    scales = sum(side > (KERNEL - 1) * 2**scale for scale in range(len(SCALE_WEIGHTS)))
    if context.pair is None or scales < 2:
        return None
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    total = sum(SCALE_WEIGHTS[:scales])
    betas = tuple(weight / total for weight in SCALE_WEIGHTS[:scales])

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return multiscale_structural_similarity_index_measure(
            a, b, data_range=RANGE, betas=betas, normalize="relu", reduction="none"
        )

    return context.of_values(by_parts(similarity, *context.pair, at_once=FEW))


@register_measure(
    "paired",
    "Edges in the teacher's places",
    unit="F-score",
    ideal="higher",
    explanation="F-score of Canny's edges against those of the teacher's image, one pixel aside allowed",
)
def edge_f_score(context: Context) -> Interval | None:
    if context.pair is None:
        return None

    def scores(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(grey(a).numpy(), grey(b).numpy(), strict=True)
        return torch.tensor([_f_score(*pair) for pair in pairs], dtype=torch.float64)

    found = context.of_values(by_parts(scores, *context.pair))
    return found if found.value == found.value else None


def _f_score(image: object, target: object) -> float:
    """Harmonic mean of the shares of either's edges that lie beside one of the other; nan where neither has any."""
    from scipy.ndimage import maximum_filter
    from skimage.feature import canny

    # Thresholds in the unit of the values, not quantiles: an image without edges has none.
    found, wanted = (canny(side, CANNY_SIGMA, 0.1, 0.2, mode="nearest") for side in (image, target))
    if not found.any() and not wanted.any():
        return float("nan")
    if not found.any() or not wanted.any():
        return 0.0
    near_found, near_wanted = (maximum_filter(edges, 2 * TOLERANCE + 1) for edges in (found, wanted))
    precision, recall = near_wanted[found].mean(), near_found[wanted].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@register_measure(
    "paired",
    "Low frequencies as the teacher's",
    unit="dB PSNR",
    ideal="higher",
    explanation="peak signal-to-noise ratio below a sixteenth of a cycle per pixel: whether it is the same picture",
)
def low_frequency_psnr(context: Context) -> Interval | None:
    if context.pair is None:
        return None
    height, width = context.images.shape[-2:]
    down, across = dct_matrix(height).float(), dct_matrix(width).float()
    low = (radial_frequency(height, width) < LOW).float()

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        error = (((down @ (a - b) @ across.T) * low).square().flatten(1).mean(1)).clamp_min(1e-10)
        return 10 * (RANGE**2 / error).log10()

    return context.of_values(by_parts(ratio, *context.pair, at_once=FEW))
