"""A disk that is full ends everything that writes in one line, and leaves what was whole."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from dar import SiT
from distill.cli import main
from distill.config import LoopConfig
from distill.data import load_dataset
from distill.data.caching import Cache, claim, write_latents
from distill.data.checking import fingerprint
from distill.errors import UserError, writing
from distill.files import locked, write_folder
from distill.files.bounded import new_npy
from distill.latents.vae import Vae
from distill.models import save_model
from distill.training.checkpoint import checkpoints
from distill.training.loop import run_loop
from tests.conftest import perturbed, tiny_config
from tests.test_cli import train_config, write_idx
from tests.test_encode_prompts import encoded
from tests.test_more_objectives import script
from tests.test_processes import TORCHRUN
from tests.test_resume import state_of, teacher_task
from tests.test_signals import started
from tests.text_pipelines import save_pipeline
from tests.vae_files import make_vae

PAGE = 4096
NO_ROOM = "No space left on device"


@dataclass
class Disk:
    """A disk of 4 MB. fill: to all but so many pages, which `free` undoes."""

    path: Path

    def fill(self, pages: int) -> None:
        try:
            with (self.path / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(PAGE))
        except OSError as error:
            assert error.errno == errno.ENOSPC
        size = (self.path / "filler").stat().st_size
        os.truncate(self.path / "filler", size - pages * PAGE)

    def free(self) -> None:
        (self.path / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a model, images, photographs and a pipeline of text."""
    torch.manual_seed(0)
    perturbed(SiT(tiny_config(input_size=28)), std=0.15).save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(40) % 3)
    colours = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "colours.npz", images=colours, labels=np.arange(40) % 3)
    return tmp_path


def pictures(made: Path, out: Path) -> int:
    options = ["--output", str(out / "drawn"), "--num-images", "12", "--steps", "1"]
    return main(["sample", str(made / "model"), *options])


def archive(made: Path, out: Path) -> int:
    options = ["--npz", str(out / "drawn.npz"), "--num-images", "12", "--steps", "1"]
    return main(["sample", str(made / "model"), *options])


def statistics(made: Path, out: Path) -> int:
    options = ["--name", "npz", "--output", str(out / "statistics.npz"), "--offline"]
    return main(["statistics", str(made / "data.npz"), *options])


def pairs(made: Path, out: Path) -> int:
    return script("make_pairs").main([str(made / "model"), str(out / "pairs"), "--num", "40", "--steps", "1"])


def page(made: Path, out: Path) -> int:
    data = str(made / "data.npz")
    return main(["evaluate", "--images", data, "--data", data, "--output", str(out / "measured"), "--offline"])


def features(made: Path, out: Path) -> int:
    return script("cache_features").main([str(made / "data.npz"), str(out / "features"), "--encoder", "embedded"])


def code_of(call: Callable[[], object]) -> int:
    """As the command line ends."""
    try:
        call()
    except (ValueError, OSError) as error:
        assert isinstance(error, UserError) and len(str(error).splitlines()) == 1
        print(error, file=sys.stderr)
        return 2
    return 0


def latents(made: Path, out: Path) -> int:
    images = load_dataset("npz", made / "colours.npz")
    vae = Vae(make_vae(seed=0, scaling_factor=0.5, shift_factor=0.1), "tiny")
    cache = Cache(out / "latents", images, vae, fingerprint(made / "colours.npz"), "float32", False)

    def call() -> None:
        with locked(cache.folder):
            write_latents(cache, claim(cache), 5, 1, lambda _: None)

    return code_of(call)


def prompts(made: Path, out: Path) -> int:
    pipeline = save_pipeline(made / "pipeline", "PixArtSigmaPipeline")
    return code_of(lambda: encoded(pipeline, out / "prompts"))


def model(made: Path, out: Path) -> int:
    whole = SiT.from_pretrained(made / "model")
    return code_of(lambda: write_folder(out / "copy", lambda folder: save_model(whole, folder)))


RESUMED = (pairs, features, latents, prompts)


BEGUN = 3  # pages: of a lock, of what a folder is about, and less than there is to write
CASES = [
    (pictures, 0),
    (archive, 0),
    (statistics, 0),
    (model, 0),
    (page, 0),
    (page, BEGUN),
    (pictures, BEGUN),
    *((call, BEGUN) for call in RESUMED),
]


@pytest.mark.parametrize(("write", "pages"), CASES)
def test_it_is_said_in_one_line_and_nothing_half_is_left(
    disk: Disk, made: Path, capsys, write: Callable[[Path, Path], int], pages: int
) -> None:
    (disk.path / "mine").write_text("kept")
    disk.fill(pages)
    assert write(made, disk.path) == 2
    said = capsys.readouterr()
    assert NO_ROOM in said.err.splitlines()[-1]
    left = [path for path in disk.path.rglob("*") if path.is_file()]
    assert not [path for path in left if path.suffix in (".partial", ".writing", ".tmp")]
    assert (disk.path / "mine").read_text() == "kept"
    disk.free()
    assert write(made, disk.path) == 0  # and goes on with what is there, or begins anew
    assert not list(disk.path.rglob("*.partial"))


def test_a_mapped_file_has_its_room_before_it_is_written(disk: Disk) -> None:
    """Else the first row without any would end the process by a signal."""
    for pages in (0, 3):  # no room for its first byte, or not for all
        disk.fill(pages)
        with pytest.raises(UserError, match=r"rows\.npy could not be written: No space left on device"):
            new_npy(disk.path / "rows.npy", np.float16, (100, 1000))
        assert not (disk.path / "rows.npy").exists()
    rows = new_npy(disk.path / "rows.npy", np.float16, (5, 1000))
    rows[:] = 1
    assert np.load(disk.path / "rows.npy").sum() == 5000


def trained(disk: Disk, fill_after: int | None, steps: int = 4, resume: bool = False) -> list[torch.Tensor]:
    """A training on the disk that checkpoints after each update, which fills before one of them."""
    task, accelerator, loop = teacher_task(disk.path, steps)
    loop = LoopConfig(steps=steps, batch_size=4, log_every=loop.log_every, grid_every=100, save_every=1, keep=9)
    update = task.update

    def until_full(step: int) -> dict:
        if step == fill_after:
            while len(checkpoints(disk.path)) < step:
                time.sleep(0.01)
            disk.fill(1)
        return update(step)

    task.update = until_full
    run_loop(task, loop, accelerator, disk.path, resume=resume)
    return state_of(task.learner.module, task.ema.module)


def test_a_training_goes_on_from_its_last_whole_checkpoint(disk: Disk) -> None:
    with pytest.raises(UserError) as raised:
        trained(disk, fill_after=2)
    said = str(raised.value)
    assert len(said.splitlines()) == 1 and NO_ROOM in said
    assert "step 3 could not be written" in said and "step_00000002 is intact" in said
    assert sorted(path.name for path in (disk.path / "checkpoints").iterdir()) == ["step_00000001", "step_00000002"]
    disk.free()
    parts = trained(disk, None, resume=True)
    assert [path.name for path in checkpoints(disk.path)][-1] == "step_00000004"
    for path in disk.path.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    assert all(torch.equal(a, b) for a, b in zip(parts, trained(disk, None), strict=True))


def test_processes_end_together(disk: Disk, made: Path) -> None:
    """The main process alone writes, and the other would wait for it."""
    config = train_config(made, write_idx(made / "data"))
    disk.fill(12)  # of which a checkpoint alone takes more
    process = started(*TORCHRUN, "-m", "distill", "train", config, f"output={disk.path / 'run'}", "train.save_every=1")
    _, said = process.communicate(timeout=90)
    assert process.returncode != 0
    ours = [line for line in said.splitlines() if line.startswith("dar-distill: error")]
    assert len(ours) == 1 and NO_ROOM in ours[0] and "step 1 could not be written" in ours[0], said
    assert not checkpoints(disk.path / "run")


def test_a_log_that_cannot_be_written(disk: Disk) -> None:
    task, accelerator, loop = teacher_task(disk.path, 4)
    disk.fill(0)
    with pytest.raises(UserError, match=r"metrics\.jsonl could not be written: No space left on device"):
        run_loop(task, loop, accelerator, disk.path)


def test_what_is_named_elsewhere_is_handed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="elsewhere"), writing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, NO_ROOM, "/elsewhere/file")
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a"):
        (tmp_path / "none").read_bytes()
    for name in (None, str(tmp_path / ".a-0123.partial")):
        with pytest.raises(UserError, match=r"/a could not be written: No space left"), writing(tmp_path / "a"):
            raise OSError(errno.ENOSPC, NO_ROOM, name)
