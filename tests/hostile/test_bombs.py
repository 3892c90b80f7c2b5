"""Files that say they hold more than they do, or become more than anyone has: refused before memory is asked for."""

from __future__ import annotations

import gzip
import io
import json
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dar import SiT
from dar.checkpoints.pickles import read_pickle
from distill.cli import main
from distill.conditions import ClassLabels
from distill.data import load_dataset
from distill.data.features import StoredFeatures
from distill.data.idx import read_idx
from distill.data.npz import load_npz
from distill.errors import UserError
from distill.evaluation.measured import Measured
from distill.files import read_json
from distill.files.bounded import check_ratio
from distill.metrics import ReferenceStatistics
from distill.metrics.published import published_reference
from distill.sampling.samplers import read_steps
from distill.training.loop import run_loop
from tests.test_cli import train_config, write_idx
from tests.test_resume import teacher_task

MEBI = 2**20
LITTLE = 200 * MEBI  # more than any of these may take; they ask for gigabytes
NESTED = "[" * 100_000


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < LITTLE


def npy_declaring(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + content


HUGE = npy_declaring((279, 2**28), b"little")  # 279 GiB


def zipped(path: Path, entries: dict[str, bytes | int]) -> Path:
    """A packed zip file; a number stands for so many MiB of zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            if isinstance(content, bytes):
                file.writestr(name, content)
            else:
                with file.open(name, "w") as entry:
                    entry.write(npy_declaring((content * MEBI // 4,)))
                    for _ in range(content):
                        entry.write(bytes(MEBI))
    return path


@pytest.mark.parametrize("what", [HUGE, 100])
@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("images", "labels"), lambda path: load_npz(path, "train")),
        (("format", "mu"), ReferenceStatistics.load),
        (("mu", "sigma"), lambda path: published_reference(path, None, None)),
    ],
)
def test_npz_files(tmp_path: Path, what: bytes | int, names: tuple[str, ...], read: Callable[[Path], object]) -> None:
    path = zipped(tmp_path / "bomb.npz", {f"{name}.npy": what for name in names})
    with pytest.raises(ValueError, match=r"bomb\.npz .*(declares|would become)"):
        read(path)


def test_how_far_a_packed_file_may_grow() -> None:
    """To 64 MiB however small it is, and to a hundred times its size."""
    for packed, most in ((1, 2**26), (2**20, 100 * 2**20)):
        check_ratio(packed, most)
        with pytest.raises(ValueError, match=f"{packed:,} bytes would become {most + 1:,}, more than 100 times"):
            check_ratio(packed, most + 1)


def test_latents(tmp_path: Path) -> None:
    listing = '{"labels": [["a.npy", 0]]}'
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset.json").write_text(listing)
    (tmp_path / "set" / "a.npy").write_bytes(HUGE)
    with pytest.raises(ValueError, match=r"a\.npy is no whole npy file: it declares .* 299,573,968,896 bytes"):
        load_dataset("latents", tmp_path / "set")
    path = zipped(tmp_path / "set.zip", {"dataset.json": listing.encode(), "a.npy": 100})
    with pytest.raises(ValueError, match=r"a\.npy is no whole npy file: its .* bytes would become"):
        load_dataset("latents", path)


def test_tensor_files(tmp_path: Path) -> None:
    """torch's own are not packed, so that they can be mapped; a packed one is refused."""
    torch.save(torch.zeros(20 * MEBI // 4), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        zipped(tmp_path / "bomb.pt", {name: file.read(name) for name in file.namelist()})
    (tmp_path / "a.pt").unlink()
    with pytest.raises(ValueError, match=r"bomb\.pt is damaged or no PyTorch checkpoint"):
        read_pickle(tmp_path / "bomb.pt")


def test_features(tmp_path: Path) -> None:
    (tmp_path / "features.json").write_text('{"encoder": "a", "made_from": "b", "num": 279, "done": 279}')
    (tmp_path / "features.npy").write_bytes(HUGE)
    with pytest.raises(UserError, match=r"features\.npy is damaged"):
        StoredFeatures(tmp_path, 279)


@pytest.mark.parametrize("shape", [(2**31, 2**31, 2**31), (100 * MEBI,)])
def test_idx_files(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"\x00\x00\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape))
        for _ in range(100 if len(shape) == 1 else 1):
            file.write(bytes(MEBI))
    with pytest.raises(ValueError, match=r"images\.gz (should hold|cannot be unpacked: its .* would become)"):
        read_idx(path)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("sampler.json", read_steps),
        ("measures.json", Measured.load),
        ("pairs.json", read_json),
        ("config.json", lambda path: SiT.from_pretrained(path.parent)),
        ("dataset.json", lambda path: load_dataset("latents", path.parent)),
        ("classes.json", lambda path: ClassLabels.load(path.parent, 3)),
    ],
)
def test_nested_json(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / name).write_text(NESTED)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "Bilder übers Meer" / "a b"
    folder.mkdir(parents=True)
    return folder


def png_declaring(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (2**31 - 1, 1), (100, 1), (0, 0)])
def test_pictures_too_large_or_too_long(photos: Path, width: int, height: int) -> None:
    (photos / "1.png").write_bytes(png_declaring(width, height))
    with pytest.raises(ValueError, match=r"1\.png"):
        load_dataset("images", photos.parent, "train", 16).batch(torch.tensor([0]), torch.zeros)


def test_pictures_of_every_kind(photos: Path) -> None:
    """What can be read is, upright and in colour; 16 bits, which would be clipped, are refused."""
    colours = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8))
    for number, mode in enumerate(("RGB", "P", "CMYK", "L", "1", "RGBA")):
        colours.convert(mode).save(photos / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    colours.save(photos / "6.jpg", exif=exif)
    (photos / "loop").symlink_to(photos / "nowhere")
    data = load_dataset("images", photos.parent, "train", 16)
    assert data.batch(torch.arange(len(data)), torch.zeros)[0].shape == (7, 3, 16, 16)
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(photos / "7.png")
    with pytest.raises(ValueError, match=r"7\.png has pixels of kind I;16"):
        load_dataset("images", photos.parent, "train", 16)
    (photos / "7.png").unlink()
    (photos / "again").symlink_to(photos.parent)
    with pytest.raises(ValueError, match="again is a link to a folder that it lies in"):
        load_dataset("images", photos.parent, "train", 16)


def test_folders_of_any_name(tmp_path: Path, capsys) -> None:
    home = tmp_path / "mein Läufe $HOME; 'x'"
    home.mkdir()
    config = train_config(home, write_idx(home / "dätä"))
    assert main(["train", config]) == 0
    assert main(["train", config, "train.steps=3", "--resume"]) == 0
    assert json.loads((home / "teacher_run" / "teacher" / "checksums.json").read_text())


def test_a_folder_that_goes_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    task, accelerator, loop = teacher_task(folder, 4)
    update = task.update

    def vanishing(step: int) -> dict:
        if step == 2:
            folder.rename(tmp_path / "elsewhere")
        return update(step)

    task.update = vanishing
    with pytest.raises(OSError, match=r"run/metrics\.jsonl"):
        run_loop(task, replace(loop, save_every=100), accelerator, folder)  # a save would make the folder anew


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    mkdir = Path.mkdir

    def refused(path: Path, *args: object, **options: object) -> None:
        if path.name == "teacher_run":
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Path, "mkdir", refused)
    assert main(["train", config]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"Permission denied: '{tmp_path / 'teacher_run'}'")
