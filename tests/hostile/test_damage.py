"""Files of every kind with bits flipped or their end cut off: refused by name, or read as what was written."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dar import SiT
from dar.checkpoints.pickles import read_pickle
from distill.assets import asset
from distill.config import TeacherConfig
from distill.data import load_dataset
from distill.data.idx import read_idx
from distill.data.npz import read_npz
from distill.evaluation.measured import Measured
from distill.files import write_folder
from distill.metrics import ReferenceStatistics
from distill.models import load_model
from distill.sampling.samplers import load_sampler, save_student
from distill.training.run_log import read_log
from tests.conftest import tiny_config
from tests.test_cli import write_idx

MANY = int(os.environ.get("DAR_DISTILL_HOSTILE", "40"))


def a_student(folder: Path) -> Path:
    torch.manual_seed(0)
    model = SiT(tiny_config(depth=1))
    write_folder(folder / "student", lambda path: save_student(model, torch.tensor([1.0, 0.5]), path))
    return folder / "student"


def an_idx(folder: Path) -> Path:
    return write_idx(folder / "idx") / "train-images-idx3-ubyte.gz"


def an_npz(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", images=np.arange(128, dtype=np.uint8).reshape(2, 8, 8), labels=np.arange(2))
    return folder / "a.npz"


def statistics(folder: Path) -> Path:
    return Path(shutil.copy(asset("data.npz"), folder))


def a_tensor_file(folder: Path) -> Path:
    torch.save({"a": torch.arange(10), "b": [1, 2]}, folder / "a.pt")
    return folder / "a.pt"


def measures(folder: Path) -> Path:
    (folder / "measures.json").write_bytes(Measured("a", "b", 4, 1, 1, 0.5, {}).to_bytes())
    return folder / "measures.json"


def a_log(folder: Path) -> Path:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": i / 3}) + "\n" for i in range(9)))
    return folder / "metrics.jsonl"


KINDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "idx": (an_idx, read_idx),
    "npz": (an_npz, lambda path: read_npz(path)[0]),
    "statistics": (statistics, lambda path: ReferenceStatistics.load(path).sigma),
    "pt": (a_tensor_file, read_pickle),
    "measures": (measures, Measured.load),
    "log": (a_log, lambda path: read_log(path.parent)),
}
CHECKED = ("idx", "npz", "statistics")  # the format itself has checksums, so that nothing else is ever read


def damaged(whole: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return whole[: chance.randrange(len(whole))]
    content = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 8])):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(content)


def equal(a: Any, b: Any) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named(tmp_path: Path, kind: str) -> None:
    make, read = KINDS[kind]
    path = make(tmp_path)
    whole, before, chance = path.read_bytes(), read(path), random.Random(kind)
    for _ in range(MANY):
        path.write_bytes(damaged(whole, chance))
        try:
            found = read(path)
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error)
        else:
            assert kind not in CHECKED or equal(found, before)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sampler.json", "classes.json", "checksums.json"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_model_is_named(tmp_path: Path, name: str, checked: bool) -> None:
    """Without checksums it may be another model, but then it is one."""
    folder = a_student(tmp_path)
    path = folder / name
    if not path.is_file() or (name == "checksums.json" and not checked):
        return
    whole, chance = path.read_bytes(), random.Random(name)
    if not checked:
        (folder / "checksums.json").unlink()
    for _ in range(MANY):
        path.write_bytes(damaged(whole, chance))
        try:
            load_sampler(str(folder), TeacherConfig())
        except (ValueError, FileNotFoundError) as error:
            assert str(folder) in str(error)
        else:
            assert not checked or path.read_bytes() == whole or name == "checksums.json"
    path.write_bytes(whole)
    load_model(folder)


ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ENDINGS)
def test_a_damaged_picture_is_named(tmp_path: Path, kind: str) -> None:
    """Or it is read: most formats have no checksums."""
    path = tmp_path / "photos" / "a" / f"1{ENDINGS[kind]}"
    path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path, kind)
    whole, chance = path.read_bytes(), random.Random(kind)
    for _ in range(2 * MANY):
        path.write_bytes(damaged(whole, chance))
        try:
            data = load_dataset("images", tmp_path / "photos", "train", 16)
            samples, _ = data.batch(torch.tensor([0]), torch.zeros)
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert samples.shape[2:] == (16, 16) and bool(samples.isfinite().all())
