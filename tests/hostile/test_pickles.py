"""No file runs code when it is read: a pickle that asks to is planted wherever anything of ours opens one."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from dar.checkpoints.pickles import check_pickles, only_allowed, read_pickle
from distill.data.features import StoredFeatures
from distill.data.latents import load_latents
from distill.data.npz import load_npz
from distill.errors import UserError
from distill.latents.vae import load_vae
from distill.metrics import ReferenceStatistics
from distill.metrics.perceptual import AlexNetLpips
from distill.metrics.published import published_reference
from distill.training.checkpoint import checkpoints
from distill.training.loop import run_loop
from tests.test_resume import resumed, teacher_task


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def harm(tmp_path: Path) -> Harm:
    return Harm(tmp_path / "harm")


def with_torch(harm: Harm, path: Path) -> None:
    torch.save({"state": harm}, path)


def with_torch_before_zip(harm: Harm, path: Path) -> None:
    torch.save({"state": harm}, path, _use_new_zipfile_serialization=False)


def with_pickle(harm: Harm, path: Path) -> None:
    path.write_bytes(pickle.dumps(harm))


WRITERS = (with_torch, with_torch_before_zip, with_pickle)


def npy(harm: Harm) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([harm], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    task, accelerator, loop = teacher_task(folder, 2)
    run_loop(task, loop, accelerator, folder)
    return folder


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "name", ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"]
)
def test_a_checkpoint_that_asks_to_run_code_is_refused(
    trained: Path, harm: Harm, name: str, write: Callable[[Harm, Path], None]
) -> None:
    path = checkpoints(trained)[-1] / name
    whole = path.read_bytes()
    write(harm, path)
    try:
        with pytest.raises(ValueError, match=rf"{name} (asks to run posix\.mkdir|is damaged)"):
            resumed(trained)
    finally:
        path.write_bytes(whole)
    assert not harm.mark.exists()


@pytest.mark.parametrize("name", ["scheduler.bin", "scaler.pt", "sampler.bin"])
def test_so_is_one_that_this_run_has_no_use_for(trained: Path, harm: Harm, name: str) -> None:
    path = checkpoints(trained)[-1] / name
    with_torch(harm, path)
    try:
        with pytest.raises(ValueError, match=rf"{name} asks to run posix\.mkdir"):
            resumed(trained)
    finally:
        path.unlink()
    assert not harm.mark.exists()


def test_what_a_checkpoint_holds_is_read(trained: Path) -> None:
    check_pickles(checkpoints(trained)[-1])
    resumed(trained)
    states = read_pickle(checkpoints(trained)[-1] / "random_states_0.pkl")
    assert isinstance(states["numpy_random_seed"][1], np.ndarray)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint as torch.distributed.checkpoint writes it for FSDP2: tensors, and values beside them."""
    folder = tmp_path / "step_00000001" / "optimizer_0"
    save_shards({"optimizer": {"moment": torch.ones(3), "lr": 0.5}}, checkpoint_id=str(folder), no_dist=True)
    return folder


def loaded(folder: Path) -> dict:
    state = {"optimizer": {"moment": torch.zeros(3), "lr": 0.0}}
    check_pickles(folder.parent)
    with only_allowed():
        load_shards(state, checkpoint_id=str(folder), no_dist=True)
    return state["optimizer"]


def test_a_sharded_checkpoint_is_read(sharded: Path) -> None:
    assert loaded(sharded)["lr"] == 0.5 and loaded(sharded)["moment"].tolist() == [1.0] * 3


@pytest.mark.parametrize("deep", [False, True])
def test_the_index_of_a_sharded_checkpoint_runs_nothing(sharded: Path, harm: Harm, deep: bool) -> None:
    """Alone, or inside the index that torch would go on to use."""
    path = sharded / ".metadata"
    index = pickle.loads(path.read_bytes())
    index.planner_data = harm
    path.write_bytes(pickle.dumps(index if deep else harm))
    with pytest.raises(ValueError, match=r"optimizer_0/\.metadata asks to run posix\.mkdir"):
        loaded(sharded)
    assert not harm.mark.exists()


@dataclass
class Attribute:
    """In a pickle the call getattr(of, name), as Python 3.11.2 writes members of enumerations."""

    of: Any
    name: str

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.of, self.name)


def test_members_of_an_enumeration_are_read_however_python_writes_them(sharded: Path) -> None:
    def refused() -> Any:
        return pytest.raises(ValueError, match=r"\.metadata asks to run builtins\.getattr")

    path = sharded / ".metadata"
    index = pickle.loads(path.read_bytes())
    for name, is_member in (("TORCH_CHANNELS_LAST", True), ("__class__", False), ("mro", False)):
        index.planner_data = Attribute(_MEM_FORMAT_ENCODING, name)
        path.write_bytes(pickle.dumps(index))
        with nullcontext() if is_member else refused():
            assert loaded(sharded)["lr"] == 0.5
    path.write_bytes(pickle.dumps(Attribute(PosixPath, "mkdir")))
    with refused():
        loaded(sharded)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_the_shards_of_a_sharded_checkpoint_run_nothing(
    sharded: Path, harm: Harm, tmp_path: Path, write: Callable[[Harm, Path], None]
) -> None:
    """Values beside tensors are pickles inside the shards, which torch reads with `weights_only=False`."""
    write(harm, tmp_path / "planted")
    planted = (tmp_path / "planted").read_bytes()
    shard, path = sharded / "__0_0.distcp", sharded / ".metadata"
    index = pickle.loads(path.read_bytes())
    (entry,) = [info for place, info in index.storage_data.items() if place.fqn == "optimizer.lr"]
    entry.offset, entry.length = shard.stat().st_size, len(planted)
    shard.write_bytes(shard.read_bytes() + planted)
    path.write_bytes(pickle.dumps(index))
    with pytest.raises(BaseException, match=r"posix\.mkdir|[Ww]eights.?only"):
        loaded(sharded)
    assert not harm.mark.exists()


def test_a_resume_holds_back_what_libraries_read(
    trained: Path, tmp_path: Path, harm: Harm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.distributed.checkpoint reads values, and hands on what a process met."""
    from torch.distributed.checkpoint.api import CheckpointException

    with_torch(harm, tmp_path / "value")
    task, accelerator, loop = teacher_task(trained, 2)

    def load_state(*_: object, **__: object) -> None:
        try:
            torch.load(tmp_path / "value", weights_only=False)
        except pickle.UnpicklingError as error:
            failures: Any = {0: (error, [])}
            raise CheckpointException("read", failures) from error

    monkeypatch.setattr("distill.training.checkpoint.load_state", load_state)
    with pytest.raises(UserError, match=r"step_00000002 asks to run posix\.mkdir"):
        run_loop(task, loop, accelerator, trained, resume=True)
    assert not harm.mark.exists()


def test_published_statistics_run_nothing(tmp_path: Path, harm: Harm) -> None:
    for write in WRITERS:
        write(harm, tmp_path / "fid.pt")
        with pytest.raises(ValueError, match=r"fid\.pt"):
            published_reference(tmp_path / "fid.pt", None, None)
    assert not harm.mark.exists()


@pytest.mark.parametrize("load", [load_npz, lambda path, _: ReferenceStatistics.load(path)])
def test_npz_files_run_nothing(tmp_path: Path, harm: Harm, load: Callable) -> None:
    path = tmp_path / "some.npz"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("images", "labels", "format", "mu"):
            file.writestr(f"{name}.npy", npy(harm))
    for content in (path.read_bytes(), npy(harm), pickle.dumps(harm)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"some\.npz"):
            load(path, "train")
    assert not harm.mark.exists()


@pytest.mark.parametrize("content", [npy, pickle.dumps])
def test_latents_and_features_run_nothing(tmp_path: Path, harm: Harm, content: Callable[[Harm], bytes]) -> None:
    (tmp_path / "dataset.json").write_text('{"labels": [["a.npy", 0]]}')
    (tmp_path / "a.npy").write_bytes(content(harm))
    with pytest.raises(ValueError, match=r"a\.npy is no whole npy file"):
        load_latents(tmp_path, "train")
    (tmp_path / "features.json").write_text('{"encoder": "a", "made_from": "b", "num": 1, "done": 1}')
    (tmp_path / "features.npy").write_bytes(content(harm))
    with pytest.raises(UserError, match=r"features\.npy is damaged"):
        StoredFeatures(tmp_path, 1)
    assert not harm.mark.exists()


def test_weights_of_others_run_nothing(tmp_path: Path, harm: Harm) -> None:
    with_torch(harm, tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match=r"alexnet\.pth"):
        AlexNetLpips(tmp_path / "alexnet.pth")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with_torch(harm, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.bin asks to run posix\.mkdir"):
        load_vae(str(tmp_path))
    assert not harm.mark.exists()


def test_a_harmful_pickle_is_harmful_elsewhere(tmp_path: Path) -> None:
    """What these tests plant does run where nothing holds it back."""
    pickle.loads(pickle.dumps(Harm(tmp_path / "done")))
    assert (tmp_path / "done").is_dir()
