"""Random crops of large pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.base import load_dataset, noise_of


def coordinates(folder: Path, name: str, height: int = 40, width: int = 80) -> None:
    """A picture whose red is its column and whose green is its row."""
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0], values[..., 1] = np.arange(width), np.arange(height)[:, None]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / f"{name}.png")


def test_crops_lie_in_their_part_and_are_drawn_anew(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        coordinates(tmp_path, name)
    train, test = (load_dataset("crops", tmp_path, split, size=16) for split in ("train", "test"))
    assert len(train) == 3000 and train.sample_shape == (3, 16, 16)
    assert train.condition.group_names() == ["a", "b", "c"]
    indices = torch.arange(300)
    x, y = train.batch(indices, noise_of(torch.Generator().manual_seed(0)))
    again, _ = train.batch(indices, noise_of(torch.Generator().manual_seed(0)))
    other, _ = train.batch(indices, noise_of(torch.Generator().manual_seed(1)))
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert torch.equal(y, indices % 3)
    columns, rows = (((x[:, i] + 1) * 127.5).round() for i in (0, 1))
    assert columns.min() == 0 and columns.max() == 59 and rows.min() == 0 and rows.max() == 39
    held_out, _ = test.batch(indices, noise_of(torch.Generator().manual_seed(0)))
    assert ((held_out[:, 0] + 1) * 127.5).round().min() == 60


def test_folders_are_classes(tmp_path: Path) -> None:
    for name in ("sea/one", "sea/two", "wood/three"):
        coordinates(tmp_path / Path(name).parent, Path(name).name)
    data = load_dataset("crops", tmp_path, "train", size=8)
    assert data.condition.group_names() == ["sea", "wood"]
    assert data.labels[:3].tolist() == [0, 0, 1]


def test_what_gives_no_crop_is_named(tmp_path: Path) -> None:
    coordinates(tmp_path, "small")
    with pytest.raises(ValueError, match=r"small\.png: the part for train has 60 x 40 pixels, a crop 64"):
        load_dataset("crops", tmp_path)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"torn\.png"):
        load_dataset("crops", tmp_path, size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        load_dataset("crops", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        load_dataset("crops", tmp_path / "nowhere")
