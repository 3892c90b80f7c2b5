"""Samples are looked at before training: all of them, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config import DataConfig
from distill.data import load_dataset
from distill.data.checking import BATCH, check_samples
from distill.errors import UserError
from distill.processes import Processes
from tests.test_data import write_latents
from tests.test_pictures import write_pictures


def config_of(path: Path, name: str = "images") -> DataConfig:
    return DataConfig(name, str(path))


class Counted:
    """Random samples that count how often each was read."""

    sample_shape = (1, 4, 4)
    condition = None

    def __init__(self, num: int, std: float = 0.5) -> None:
        self.samples = 0.3 + std * torch.randn(num, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.read = torch.zeros(num, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor, noise) -> tuple[Tensor, Tensor]:
        self.read[indices] += 1
        return self.samples[indices], torch.zeros(len(indices))


def test_all_samples_are_read_and_their_spread_is_told() -> None:
    data = Counted(3 * BATCH + 5)
    std = check_samples(data, DataConfig("made", "/made/of/nothing"))  # pyright: ignore[reportArgumentType]
    assert data.read.tolist() == [1] * len(data)
    assert std == pytest.approx(float(data.samples.std(correction=0)), rel=1e-4)


def test_processes_share_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Second(Processes):
        def gather(self, images: Tensor) -> Tensor:
            return torch.cat([torch.tensor([[1600.0, 1.3, 1.3**2 + 0.25]]), images])

        def agreed(self, value: Any) -> Any:
            return value  # no verdict of an earlier reading

    monkeypatch.setattr(Processes, "all", classmethod(lambda cls: Second(1, 2)))
    data = Counted(200)
    std = check_samples(data, DataConfig("made", "/made/of/nothing"))  # pyright: ignore[reportArgumentType]
    assert data.read.tolist() == [0, 1] * 100
    mine = data.samples[1::2].flatten().double()
    both = torch.stack([mine.mean(), torch.tensor(1.3)])
    expected = (mine.square().mean() + 1.3**2 + 0.25) / 2 - both.mean().square()
    assert std == pytest.approx(float(expected.sqrt()), rel=1e-4)


@pytest.mark.parametrize(("scale", "said"), [(6.0, r"std [56]\.\d+; expected 0\.05 to 3"), (0.01, r"std 0\.01")])
def test_an_absurd_scale_is_refused(scale: float, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_samples(Counted(100, scale), DataConfig("made", "/x"))  # pyright: ignore[reportArgumentType]


def test_a_verdict_holds_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pictures(tmp_path / "pets" / "cat", num=5)
    data = load_dataset("images", tmp_path / "pets")
    first = check_samples(data, config_of(tmp_path / "pets"))
    with monkeypatch.context() as patched:
        patched.setattr(type(data), "batch", lambda *_: pytest.fail("read again"))
        assert check_samples(data, config_of(tmp_path / "pets")) == first
    picture = next((tmp_path / "pets" / "cat").iterdir())
    picture.write_bytes(picture.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f"{picture.name} is damaged"):
        check_samples(data, config_of(tmp_path / "pets"))


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    data = Counted(100)
    data.samples[70, 0, 1, 1] = float("nan")
    with pytest.raises(UserError, match="/x: sample 70 holds values that are not finite"):
        check_samples(data, DataConfig("made", "/x"))  # pyright: ignore[reportArgumentType]
    write_latents(tmp_path)
    (broken,) = sorted(tmp_path.rglob("*.npy"))[-1:]
    array = np.load(broken)
    array[..., 0, 0] = np.inf
    np.save(broken, array)
    with pytest.raises(ValueError, match=f"{broken.name} holds values that are not finite"):
        check_samples(load_dataset("latents", tmp_path), config_of(tmp_path, "latents"))
