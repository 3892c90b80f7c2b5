"""LPIPS (arXiv:1801.03924): the perceptual distance of two images, and the diversity within a class.

The lpips package contains the weights of LPIPS but not the ImageNet AlexNet below them, which is downloaded once. If it
is missing, a stand-in replaces it for images that the shipped classifier reads: the same formula on the classifier's
maps, without learned weights. Values of the stand-in compare only with each other; report its `name` with them.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from dar.checkpoints.pickles import read_pickle
from distill.metrics.features import EmbeddedExtractor, Extractor
from distill.metrics.images import check_images
from distill.metrics.weights import published_weights

ALEXNET_FILES = "alexnet-owt-*.pth"  # names that torchvision uses
ALEXNET_SHA256 = "7be5be79"  # how the digest begins, as in torchvision's name
ALEXNET_URL = f"https://download.pytorch.org/models/alexnet-owt-{ALEXNET_SHA256}.pth"
ALEXNET_SIDE = 64  # smaller images are enlarged, because AlexNet's strides need more than 28 pixels
NUM_PAIRS = 1000


class PerceptualDistance(Protocol):
    """A distance between aligned images; its name is printed with the values."""

    name: str

    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        """Distance of each pair, [N] on the CPU, for images a and b, both [N, C, H, W] in [-1, 1]."""
        ...

    def losses(self, a: Tensor, b: Tensor) -> Tensor:
        """The same with gradient, [N] on the images' device."""
        ...


class AlexNetLpips:
    """LPIPS 0.1 on AlexNet. Grey images are repeated to 3 channels; images below 64 x 64 are enlarged to 64 x 64."""

    name = "LPIPS (AlexNet)"

    def __init__(self, backbone: Path, device: torch.device | str = "cpu") -> None:
        """Raises: ValueError if `backbone` is not torchvision's AlexNet."""
        from lpips import LPIPS

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # lpips uses torchvision's deprecated argument for weights
            model = LPIPS(net="alex", pnet_rand=True, verbose=False)  # pnet_rand: do not download
        try:
            weights = read_pickle(backbone)
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
        return torch.cat([self.losses(x, y).cpu() for x, y in batches])

    def losses(self, a: Tensor, b: Tensor) -> Tensor:
        return self.model(self._enlarge(a), self._enlarge(b)).flatten()

    def _enlarge(self, images: Tensor) -> Tensor:
        images = images.float().expand(-1, 3, -1, -1).to(self.device)
        if min(images.shape[-2:]) < ALEXNET_SIDE:
            images = interpolate(images, size=(ALEXNET_SIDE, ALEXNET_SIDE), mode="bilinear", antialias=True)
        return images


class EmbeddedLpips:
    """The LPIPS formula on the classifier's maps: sum over layers of the spatial mean of |f_a - f_b|^2.

    f are the maps normalised to unit length over channels; every channel has weight 1.
    """

    name = "lpips stand-in (embedded classifier features)"

    def __init__(self, extractor: EmbeddedExtractor) -> None:
        self.extractor = extractor

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        _check_pair(a, b)
        batches = zip(a.split(batch_size), b.split(batch_size), strict=True)
        return torch.cat([self.losses(x, y).cpu() for x, y in batches])

    def losses(self, a: Tensor, b: Tensor) -> Tensor:
        maps = zip(self.extractor.feature_maps(a), self.extractor.feature_maps(b), strict=True)
        layers = [(normalize(x, dim=1) - normalize(y, dim=1)).square().sum(1).mean((-2, -1)) for x, y in maps]
        return torch.stack(layers).sum(0)


def find_alexnet(offline: bool = False) -> Path:
    """torchvision's AlexNet weights in torch hub's cache, into which they are downloaded once.

    Raises: FileNotFoundError, which says what is missing and how to get it.
    """
    cached = sorted((Path(torch.hub.get_dir()) / "checkpoints").glob(ALEXNET_FILES))
    return cached[0] if cached else published_weights(ALEXNET_URL, sha256=ALEXNET_SHA256, offline=offline)


def load_perceptual(
    image_shape: tuple[int, ...],
    extractor: Extractor | None = None,
    *,
    device: torch.device | str = "cpu",
    offline: bool = False,
) -> PerceptualDistance:
    """LPIPS if AlexNet's weights are available, otherwise the stand-in; its `name` says which.

    Args:
        image_shape: (C, H, W) of the images to compare.
        extractor: if it is an `EmbeddedExtractor`, the stand-in uses its maps.
        offline: download nothing.

    Raises: FileNotFoundError, which says how to get the weights; ValueError if the AlexNet file is damaged.
    """
    try:
        backbone = find_alexnet(offline)
    except FileNotFoundError:
        if not isinstance(extractor, EmbeddedExtractor) or not extractor.reads(image_shape):
            raise
        return EmbeddedLpips(extractor)
    return AlexNetLpips(backbone, device)


def pairs_within_classes(labels: Tensor, max_pairs: int = NUM_PAIRS, seed: int = 0) -> Tensor:
    """Indices [P, 2] of random pairs within a class.

    No image is in two pairs, so measurements of the pairs are independent. Each of K classes gives max_pairs / K pairs,
    rounded up, or all its pairs if it has fewer. P = 0 if no class has 2 images.
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
    """Distance of each pair in `pairs_within_classes`, [P]; the mean is the diversity."""
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels {list(labels.shape)} do not belong to images {list(images.shape)}")
    first, second = pairs_within_classes(labels.cpu(), max_pairs, seed).unbind(1)
    return perceptual.distance(images[first], images[second]) if len(first) else torch.empty(0)


def _check_pair(a: Tensor, b: Tensor) -> None:
    check_images(a)
    check_images(b)
    if a.shape != b.shape:
        raise ValueError(f"image sets of shapes {list(a.shape)} and {list(b.shape)} are not aligned")
