"""Two processes do what one does, whether each holds all models or they are cut among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dar import SiT
from dar.checksums import CHECKSUMS_FILE
from distill.cli import main
from distill.evaluation.measured import Measured
from distill.training.checkpoint import checkpoints
from distill.training.run_log import read_log
from tests import training_jobs
from tests.conftest import without_time
from tests.hostile.test_pickles import Harm, with_pickle
from tests.test_cli import train_config, write_idx

ROOT = Path(__file__).parents[1]
ON_CPU = {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
STRATEGIES = {"ddp": ({}, "evaluate"), "fsdp": (FSDP, "distil")}
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FSDP_FILE = str(ROOT / "configs" / "accelerate" / "fsdp2.yaml")
ACCELERATE = ("accelerate.commands.accelerate_cli", "launch", "--config_file", FSDP_FILE, "--num_processes", "2")
TEACHER = {"teacher/loss", "teacher/grad_norm"}
STUDENT = {"student/loss", "student/grad_norm", "fake_score/loss", "fake_score/grad_norm", "fake_score/lag"}


def launch(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in gloo processes on the CPU, as the README tells people to."""
    return subprocess.run(
        [sys.executable, "-m", *argv],
        env={**os.environ, **ON_CPU, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def assert_same_logs(one: Path, two: Path, names: set[str], rel: float = 1e-6) -> None:
    logs = read_log(one), read_log(two)
    assert len(logs[0]) == len(logs[1]) > 0
    for alone, together in zip(*logs, strict=True):
        for name in names:
            assert together[name] == pytest.approx(alone[name], rel=rel, abs=1e-6), (name, alone["step"])


def assert_same_models(one: Path, two: Path) -> None:
    alone, together = SiT.from_pretrained(one), SiT.from_pretrained(two)
    for (name, a), b in zip(alone.state_dict().items(), together.state_dict().values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    training_jobs.base_model().save_pretrained(folder / training_jobs.BASE)
    training_jobs.do_all(folder)
    return folder


@pytest.fixture(scope="module", params=STRATEGIES)
def together(request: pytest.FixtureRequest, alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    shutil.copytree(alone / training_jobs.BASE, folder / training_jobs.BASE)
    environment, then = STRATEGIES[request.param]
    done = launch(*TORCHRUN, "-m", "tests.training_jobs", str(folder), then, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize(("job", "names"), [("train", TEACHER), ("all", STUDENT), ("lora", STUDENT)])
def test_two_processes_do_what_one_does(alone: Path, together: Path, job: str, names: set[str]) -> None:
    assert_same_logs(alone / job, together / job, names)
    assert_same_models(alone / job / "model", together / job / "model")
    assert (together / job / "grids" / "step_00000003.png").is_file()


def test_two_processes_resume_bit_exactly(together: Path) -> None:
    whole, parts = together / "all", together / training_jobs.RESUMED
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    assert weights[0] == weights[1]
    assert without_time(whole) == without_time(parts)


@pytest.mark.parametrize("together", ["ddp"], indirect=True)
def test_one_process_goes_on_where_two_stopped(alone: Path, together: Path, tmp_path: Path) -> None:
    """In another place, too."""
    shutil.copytree(alone / training_jobs.BASE, tmp_path / training_jobs.BASE)
    folder = shutil.copytree(together / "all", tmp_path / "all")
    shutil.rmtree(folder / "model")
    shutil.rmtree(checkpoints(folder)[-1])
    training_jobs.JOBS["all"](folder, resume=True)
    assert_same_logs(alone / "all", folder, STUDENT)
    assert_same_models(alone / "all" / "model", folder / "model")


@pytest.mark.parametrize("together", ["ddp"], indirect=True)
def test_two_processes_draw_and_measure_what_one_does(together: Path, tmp_path: Path) -> None:
    training_jobs.evaluate(tmp_path)
    one, two = (Measured.load(folder / "measured" / "measures.json").measures for folder in (tmp_path, together))
    assert len(one) > 10 and list(two) == list(one)
    for name, value in one.items():
        assert two[name].value == pytest.approx(value.value, rel=1e-3, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("together", ["fsdp"], indirect=True)
def test_the_command_line_distils(together: Path) -> None:
    assert SiT.from_pretrained(together / "run" / "student").sample_shape == (1, 28, 28)


@pytest.mark.slow
@pytest.mark.parametrize("together", ["fsdp"], indirect=True)
@pytest.mark.parametrize("place", [".metadata", "custom_checkpoint_0.pkl"])
def test_a_sharded_run_that_asks_to_run_code_is_refused(together: Path, tmp_path: Path, place: str) -> None:
    """In one line of the main process; what is planted is tried out in tests/hostile/test_pickles.py."""
    folder = shutil.copytree(together / "run", tmp_path / "run")
    (checkpoint,) = checkpoints(folder)[-1:]
    path = next(checkpoint.rglob(place))
    with_pickle(Harm(tmp_path / "harm"), path)
    (checkpoint / CHECKSUMS_FILE).unlink()
    settings = ["train.steps=2", "train.batch_size=2", "evaluate.num_images=6", f"output={folder}", "--resume"]
    done = launch(*TORCHRUN, "-m", "distill", "run", str(together / "run.yaml"), *settings, **FSDP)
    assert done.returncode != 0 and not (tmp_path / "harm").exists()
    said = [line for line in done.stderr.splitlines() if "dar-distill: error" in line]
    assert len(said) == 1 and f"{path} " in said[0], done.stderr


def test_the_command_line_with_accelerates_file(tmp_path: Path) -> None:
    """In bf16, which is rounded float32."""
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert main(["train", config, f"output={tmp_path / 'one'}", "optim.lr=0.01"]) == 0
    settings = ["optim.lr=0.01", "train.mixed_precision=bf16"]
    done = launch(*ACCELERATE, "-m", "distill", "train", config, f"output={tmp_path / 'two'}", *settings)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_logs(tmp_path / "one", tmp_path / "two", {"teacher/loss"}, rel=1e-2)
    saved = SiT.from_pretrained(tmp_path / "two" / "teacher")
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.float32}
    (checkpoint,) = checkpoints(tmp_path / "two")[-1:]
    assert (checkpoint / "pytorch_model_fsdp_0").is_dir()
