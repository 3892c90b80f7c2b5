"""Feature extractors by name. To add one: a class with `extract`, and a loader registered here.

"embedded"   the classifier in distill/assets/extractor: 64 features, 10 logits; 28 x 28 grey images only
"inception"  torch-fidelity's Inception v3: 2048 features; weights are downloaded once
"dinov2"     DINOv2 by transformers, the class token: 1024 features of the large one, FD-DINOv2 (arXiv:2306.04675)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dar.checkpoints.pickles import only_allowed, read_pickle
from distill.metrics.classifier import Classifier, check_classifier_images
from distill.metrics.images import check_images
from distill.metrics.weights import published_weights

EMBEDDED_FOLDER = Path(__file__).parents[1] / "assets" / "extractor"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
SPATIAL_CHANNELS = 7
DINO_MODEL = "facebook/dinov2-large"
DINO_SIDE = 224
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_PATCHED = 128  # pixels of a side from which on crops say something else than the whole
_INCEPTION_SHA256 = "6726825d"  # first digits of the digest, torch.hub's convention for file names


@dataclass(frozen=True)
class Features:
    """Features [N, D], float32 on the CPU like all of these.

    logits: [N, K] of a classifier of the images' own classes. inception_logits: [N, 1008], without bias, of which the
    Inception score is made. spatial: [N, 2023], of which sFID is made.
    """

    features: Tensor
    logits: Tensor | None = None
    inception_logits: Tensor | None = None
    spatial: Tensor | None = None


class Extractor(Protocol):
    """The interface of a feature extractor."""

    name: str
    feature_dim: int

    @property
    def version(self) -> str:
        """Identifies the weights: features of two versions cannot be compared."""
        ...

    def reads(self, image_shape: tuple[int, ...]) -> bool:
        """Whether it can read images of shape (C, H, W)."""
        ...

    def extract(self, images: Tensor, batch_size: int = 250) -> Features:
        """Features of images [N, C, H, W] in [-1, 1].

        Raises: ValueError if the extractor cannot read such images.
        """
        ...


class EmbeddedExtractor:
    """The shipped classifier, or another one saved in the same format."""

    name = "embedded"

    def __init__(self, model: Classifier, device: torch.device | str = "cpu") -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        self.feature_dim = model.config.feature_dim

    @property
    def version(self) -> str:
        return _digest(self.model)

    def reads(self, image_shape: tuple[int, ...]) -> bool:
        config = self.model.config
        return tuple(image_shape) == (config.in_channels, config.image_size, config.image_size)

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 250) -> Features:
        check_images(images)
        check_classifier_images(images, self.model.config)
        parts = [self.model(batch.float().to(self.device)) for batch in images.split(batch_size)]
        features, logits = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
        return Features(features, logits)

    @property
    def token_width(self) -> int:
        """D of `tokens`."""
        return self.model.config.widths[-1]

    def tokens(self, images: Tensor) -> Tensor:
        """The last convolution's map as tokens (B, T, D), on the extractor's device."""
        return self.feature_maps(images)[-1].flatten(2).transpose(1, 2)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Convolution maps of images [B, C, H, W], stage by stage, on the extractor's device."""
        check_classifier_images(images, self.model.config)
        return self.model.feature_maps(images.float().to(self.device))


class InceptionExtractor:
    """torch-fidelity's port of the Inception v3 that defines the Fréchet Inception distance.

    Images are rounded to 8 bits, and grey images are repeated to three channels; the network resizes to 299 x 299.
    """

    name = "inception"
    version = _INCEPTION_SHA256
    feature_dim = 2048

    def __init__(self, weights: Path, device: torch.device | str = "cpu") -> None:
        from torch_fidelity import FeatureExtractorInceptionV3

        self.device = torch.device(device)
        self.model = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
        ).to(device)
        # mixed_6/conv of the original graph, of which sFID takes seven channels (arXiv:2103.03841).
        self._spatial: list[Tensor] = []
        self.model.Mixed_6d.branch1x1.register_forward_hook(
            lambda _layer, _inputs, maps: self._spatial.append(maps[:, :SPATIAL_CHANNELS].flatten(1).float().cpu())
        )

    def reads(self, image_shape: tuple[int, ...]) -> bool:
        return image_shape[0] in (1, 3)

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 50) -> Features:
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have {images.shape[1]} channels; Inception reads 1 or 3")
        parts = []
        self._spatial.clear()
        for batch in images.split(batch_size):
            pixels = ((batch.float() + 1) * 127.5).round().clamp(0, 255).byte()
            parts.append([part.cpu() for part in self.model(pixels.expand(-1, 3, -1, -1).to(self.device))])
        features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
        return Features(features, inception_logits=logits, spatial=torch.cat(self._spatial))


class DinoExtractor:
    """The class token of a DINOv2 of transformers, of images resized to 224 x 224 by its own normalisation."""

    name = "dinov2"

    def __init__(self, model: Any, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(device)
        self.feature_dim = model.config.hidden_size

    @property
    def version(self) -> str:
        return _digest(self.model)

    def reads(self, image_shape: tuple[int, ...]) -> bool:
        return image_shape[0] in (1, 3)

    @torch.no_grad()
    def extract(self, images: Tensor, batch_size: int = 50) -> Features:
        check_images(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images have {images.shape[1]} channels; DINOv2 reads 1 or 3")
        return Features(torch.cat([self._states(batch)[:, 0].cpu() for batch in images.split(batch_size)]))

    @property
    def token_width(self) -> int:
        """D of `tokens`."""
        return self.feature_dim

    def tokens(self, images: Tensor) -> Tensor:
        """The tokens of patches, without the class token, (B, T, D), on the extractor's device."""
        return self._states(images)[:, 1:]

    def _states(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1).to(self.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        pixels = (images.float().to(self.device).expand(-1, 3, -1, -1).clamp(-1, 1) + 1) / 2
        pixels = interpolate(pixels, size=(DINO_SIDE, DINO_SIDE), mode="bicubic", antialias=True)
        return self.model((pixels - mean) / std).last_hidden_state.float()


def _digest(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        value = value.float() if value.is_floating_point() else value
        digest.update(key.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()[:8]


def _load_embedded(path: Path | None, device: torch.device | str, offline: bool) -> Extractor:
    return EmbeddedExtractor(Classifier.from_pretrained(path or EMBEDDED_FOLDER), device)


def _load_inception(path: Path | None, device: torch.device | str, offline: bool) -> Extractor:
    weights = path or published_weights(INCEPTION_URL, sha256=_INCEPTION_SHA256, offline=offline)
    if not weights.is_file():
        raise FileNotFoundError(f"Inception weights are not at {weights}; get {INCEPTION_URL}")
    # The file is a pickle: accept only the published file, and none that would run code.
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if not digest.startswith(_INCEPTION_SHA256):
        raise ValueError(
            f"{weights} is damaged or another file: its SHA-256 begins {digest[:8]}, not {_INCEPTION_SHA256}"
        )
    read_pickle(weights)  # for its message: torch-fidelity would be refused, too
    with only_allowed():
        return InceptionExtractor(weights, device)


def _load_dino(path: Path | None, device: torch.device | str, offline: bool) -> Extractor:
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise FileNotFoundError("DINOv2 needs transformers: pip install transformers") from error
    name = str(path or DINO_MODEL)
    try:
        model = AutoModel.from_pretrained(name, local_files_only=offline, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"DINOv2 is not at {name} and not in the Hub's cache") from error
    return DinoExtractor(model, device)


EXTRACTORS: dict[str, Callable[[Path | None, torch.device | str, bool], Extractor]] = {
    "embedded": _load_embedded,
    "inception": _load_inception,
    "dinov2": _load_dino,
}


def patch_features(extractor: Extractor, images: Tensor) -> Tensor | None:
    """Features of one crop of each image at full resolution, half its side, taken at seeded places: for patch FID.

    None for images below 128 pixels, or where the extractor does not read such crops.
    """
    side = min(images.shape[-2:])
    size = side // 2
    if side < MIN_PATCHED or not extractor.reads((images.shape[1], size, size)):
        return None
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(images.shape[-2] - size + 1, (len(images),), generator=generator)
    columns = torch.randint(images.shape[-1] - size + 1, (len(images),), generator=generator)
    places = zip(images, rows.tolist(), columns.tolist(), strict=True)
    return extractor.extract(torch.stack([x[:, i : i + size, j : j + size] for x, i, j in places])).features


def load_extractor(
    name: str, path: str | Path | None = None, *, device: torch.device | str = "cpu", offline: bool = False
) -> Extractor:
    """Load the extractor `name`, in eval mode.

    Args:
        path: folder ("embedded") or weights file ("inception"); None for the shipped folder, or for torch hub's cache,
            into which the weights are downloaded once.
        offline: download nothing.

    Raises: ValueError, which lists the names, if there is no such extractor, or if a file is damaged;
        FileNotFoundError, which names the missing file and says how to get it.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"no feature extractor {name!r}; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name](Path(path) if path is not None else None, device, offline)
