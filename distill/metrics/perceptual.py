"""LPIPS (arXiv:1801.03924): how different two images look, and how much variety there is inside a class.

The lpips package brings LPIPS's own weights but not the ImageNet AlexNet below them. Where that file is not
in torch hub's cache, a stand-in takes its place: the same construction on the embedded classifier's maps,
without learned weights. Its figures are comparable with each other only; say its `name` beside them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from distill.metrics.classifier import Classifier
from distill.metrics.features import EMBEDDED_FOLDER, EmbeddedExtractor, Extractor
from distill.metrics.spectrum import check_images

ALEXNET_FILES = "alexnet-owt-*.pth"  # torchvision's names
ALEXNET_SIDE = 64  # smaller images are enlarged: 28 pixels are too few for AlexNet's strides
NUM_PAIRS = 1000


class PerceptualDistance(Protocol):
    """A distance between aligned images, with the name to print beside its figures."""

    name: str

    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        """Distance of each pair, [N] on the CPU, of images a and b, [N, C, H, W] in [-1, 1] both."""
        ...


class AlexNetLpips:
    """LPIPS 0.1 on AlexNet; grey is repeated to 3 channels, images below 64 x 64 are enlarged to it."""

    name = "LPIPS (AlexNet)"

    def __init__(self, backbone: Path, device: torch.device | str = "cpu") -> None:
        """Raises: ValueError where `backbone` is not torchvision's AlexNet."""
        from lpips import LPIPS

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips names torchvision's weights in the old way
            model = LPIPS(net="alex", pnet_rand=True, verbose=False)  # pnet_rand: no download
        try:
            weights = torch.load(backbone, map_location="cpu", weights_only=True)
            for key, parameter in model.net.named_parameters():
                # slice3.6.weight in lpips is features.6.weight in torchvision
                parameter.data.copy_(weights["features." + key.split(".", 1)[1]])
        except Exception as error:
            raise ValueError(f"{backbone} is damaged or no AlexNet of torchvision: {error}") from error
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        _check_pair(a, b)
        if a.shape[1] not in (1, 3):
            raise ValueError(f"images have {a.shape[1]} channels; AlexNet reads 1 or 3")
        batches = zip(a.split(batch_size), b.split(batch_size), strict=True)
        return torch.cat([self.model(self._enlarge(x), self._enlarge(y)).flatten().cpu() for x, y in batches])

    def _enlarge(self, images: Tensor) -> Tensor:
        images = images.float().expand(-1, 3, -1, -1).to(self.device)
        if min(images.shape[-2:]) < ALEXNET_SIDE:
            images = interpolate(images, size=(ALEXNET_SIDE, ALEXNET_SIDE), mode="bilinear", antialias=True)
        return images


class EmbeddedLpips:
    """LPIPS's construction on the classifier's maps: sum over layers of the spatial mean of |f_a - f_b|^2.

    f are the maps scaled to unit length over channels; every channel has weight 1.
    """

    name = "lpips stand-in (embedded classifier features)"

    def __init__(self, extractor: EmbeddedExtractor) -> None:
        self.extractor = extractor

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        _check_pair(a, b)
        batches = zip(a.split(batch_size), b.split(batch_size), strict=True)
        return torch.cat([self._distance(x, y).cpu() for x, y in batches])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        maps = zip(self.extractor.feature_maps(a), self.extractor.feature_maps(b), strict=True)
        layers = [(normalize(x, dim=1) - normalize(y, dim=1)).square().sum(1).mean((-2, -1)) for x, y in maps]
        return torch.stack(layers).sum(0)


def find_alexnet() -> Path | None:
    """torchvision's AlexNet weights in torch hub's cache, or None; nothing is downloaded."""
    return next(iter(sorted((Path(torch.hub.get_dir()) / "checkpoints").glob(ALEXNET_FILES))), None)


def load_perceptual(
    image_shape: tuple[int, ...], extractor: Extractor | None = None, *, device: torch.device | str = "cpu"
) -> PerceptualDistance | None:
    """LPIPS where AlexNet's weights are on this machine, else the stand-in; its `name` says which.

    Args:
        image_shape: (C, H, W) of the images to compare.
        extractor: the classifier of the stand-in; the shipped one where it is not an `EmbeddedExtractor`.

    Returns: None where what there is cannot read such images.
    Raises: ValueError for a damaged AlexNet file.
    """
    backbone = find_alexnet()
    if backbone:
        return AlexNetLpips(backbone, device) if image_shape[0] in (1, 3) else None
    if not isinstance(extractor, EmbeddedExtractor):
        extractor = EmbeddedExtractor(Classifier.from_pretrained(EMBEDDED_FOLDER), device)
    config = extractor.model.config
    reads = (config.in_channels, config.image_size, config.image_size)
    return EmbeddedLpips(extractor) if tuple(image_shape) == reads else None


def pairs_within_classes(labels: Tensor, max_pairs: int = NUM_PAIRS, seed: int = 0) -> Tensor:
    """Indices [P, 2] of random pairs of one class, no image in two of them: what is measured of them is independent.

    Of each of K classes the same number, max_pairs / K rounded up, or all that a smaller class has; P = 0 where no
    class has 2 images.
    """
    generator = torch.Generator().manual_seed(seed)
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    each = -(-max_pairs // len(members))
    pairs = []
    for indices in members:
        mixed = indices[torch.randperm(len(indices), generator=generator)]
        pairs.append(mixed[: len(mixed) // 2 * 2].view(-1, 2)[:each])
    return torch.cat(pairs)


def class_diversity(
    perceptual: PerceptualDistance,
    images: Tensor,
    labels: Tensor,
    *,
    max_pairs: int = NUM_PAIRS,
    seed: int = 0,
) -> Tensor:
    """Distance of each of `pairs_within_classes`, [P]; the mean is the diversity."""
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels {list(labels.shape)} do not belong to images {list(images.shape)}")
    first, second = pairs_within_classes(labels.cpu(), max_pairs, seed).unbind(1)
    return perceptual.distance(images[first], images[second]) if len(first) else torch.empty(0)


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_images(a)
    check_images(b)
    if a.shape != b.shape:
        raise ValueError(f"image sets of shapes {list(a.shape)} and {list(b.shape)} are not aligned")
