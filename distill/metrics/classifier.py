"""The small classifier for feature distances when no ImageNet network is available."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dar.folder import CONFIG_FILE, WEIGHTS_FILE, check_folder

CARD_FILE = "README.md"


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of a `Classifier`.

    Raises: ValueError if a size is not positive or the stages leave no pixel.
    """

    image_size: int = 28
    in_channels: int = 1
    widths: tuple[int, ...] = (24, 48, 64)
    feature_dim: int = 64
    num_classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists only
        for name in ("image_size", "in_channels", "feature_dim", "num_classes"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths is {self.widths!r}; it must hold at least one positive number")
        if self.image_size >> len(self.widths) < 1:
            raise ValueError(f"{len(self.widths)} halvings leave nothing of image_size {self.image_size}")


class Classifier(nn.Module):
    """Convolution stages that each halve the image, then one hidden layer, whose output is the feature vector.

    In eval mode the output for an image does not depend on the rest of its batch.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        channels = (config.in_channels, *config.widths)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels[i], channels[i + 1], 3, padding=1, bias=False),
                nn.BatchNorm2d(channels[i + 1]),
                nn.ReLU(),
            )
            for i in range(len(config.widths))
        )
        self.pool = nn.MaxPool2d(2)
        side = config.image_size >> len(config.widths)
        self.hidden = nn.Linear(config.widths[-1] * side * side, config.feature_dim)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(config.feature_dim, config.num_classes)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Output of each stage before pooling, [B, widths[i], H / 2^i, W / 2^i], for images [B, C, H, W]."""
        maps = []
        x = images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
            x = self.pool(x)
        return maps

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, feature_dim] and logits [B, num_classes] of images [B, C, H, W] in [-1, 1]."""
        last = self.pool(self.feature_maps(images)[-1])  # [B, widths[-1], side, side]
        features = self.hidden(last.flatten(1)).relu()
        return features, self.head(self.dropout(features))

    @torch.no_grad()
    def scale_features(self, factor: float) -> None:
        """Multiply the features by `factor` > 0 and keep the logits, which works because ReLU(a x) = a ReLU(x)."""
        self.hidden.weight.mul_(factor)
        self.hidden.bias.mul_(factor)
        self.head.weight.div_(factor)

    def save_pretrained(self, folder: str | Path, card: str) -> None:
        """Write a folder with config.json, model.safetensors and README.md; one rename replaces an older folder."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            (fresh / CONFIG_FILE).write_text(json.dumps(asdict(self.config), indent=2) + "\n")
            save_file(self.state_dict(), fresh / WEIGHTS_FILE)
            (fresh / WEIGHTS_FILE).chmod(0o644)  # safetensors makes the file readable for its owner only
            (fresh / CARD_FILE).write_text(card)
            if folder.exists():
                shutil.move(folder, Path(temporary) / "old")
            fresh.replace(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Classifier:
        """Load the classifier saved in `folder`, in eval mode, on the CPU.

        Raises: FileNotFoundError or ValueError, which names the file that is missing, damaged or of another shape.
        """
        folder = Path(folder)
        check_folder(folder, ClassifierConfig)
        model = cls(ClassifierConfig(**json.loads((folder / CONFIG_FILE).read_text())))
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except RuntimeError as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
        return model.eval()


def check_classifier_images(images: Tensor, config: ClassifierConfig) -> None:
    """Raises: ValueError if images are not [B, in_channels, image_size, image_size]."""
    wanted = (config.in_channels, config.image_size, config.image_size)
    if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
        raise ValueError(f"images have shape {list(images.shape)}; this classifier reads a batch of {list(wanted)}")
    if not torch.is_floating_point(images):
        raise ValueError(f"images are {images.dtype}; they must be floating point in [-1, 1]")
