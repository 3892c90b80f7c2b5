"""Values of the right shape that mean nothing are refused by file and field, before anything is computed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dar import SiT
from distill.assets import asset
from distill.cli import main
from distill.config import OptimConfig, TrainConfig, build_config
from distill.errors import UserError
from distill.metrics import ReferenceStatistics
from distill.sampling.samplers import read_steps, save_student
from distill.training.run_log import read_log
from tests.conftest import perturbed, tiny_config
from tests.test_cli import refused


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "student"
    torch.manual_seed(0)
    model = SiT(tiny_config())
    perturbed(model)
    save_student(model, torch.tensor([1.0, 0.5]), folder)
    return folder


NOT_T = (
    "[NaN]", "[2.0, 0.5]", "[0.5, 1.0]", "[1.0, -0.5]", "[1.0, 0.0]", "[true]", "[]", "[1.0, 1.0]", '["1.0"]', "1.0",
    "null", "[Infinity]", "[[1.0]]", "[1e400]", '"10"',
)  # fmt: skip


@pytest.mark.parametrize("t_list", NOT_T)
def test_timesteps(tmp_path: Path, t_list: str) -> None:
    file = tmp_path / "sampler.json"
    file.write_text(f'{{"kind": "few_step", "t_list": {t_list}}}')
    with pytest.raises(UserError, match=r"sampler\.json: t_list must"):
        read_steps(file)


@pytest.mark.parametrize("steps", ["-1", "3", "1e9", "true", "0.5", "null", '"1"'])
def test_ode_steps(tmp_path: Path, steps: str) -> None:
    file = tmp_path / "sampler.json"
    file.write_text(f'{{"kind": "few_step", "t_list": [1.0, 0.5], "ode_steps": {steps}}}')
    with pytest.raises(UserError, match=r"sampler\.json: ode_steps must be a whole number from 0 to 2"):
        read_steps(file)


def test_a_list_alone_has_no_ode_steps(tmp_path: Path) -> None:
    file = tmp_path / "sampler.json"
    file.write_text('{"kind": "few_step", "t_list": [1.0, 0.5]}')
    t_list, ode_steps = read_steps(file)
    assert t_list.tolist() == [1.0, 0.5] and ode_steps == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_weights_that_draw_nothing(student: Path, tmp_path: Path, capsys, value: float) -> None:
    folder = shutil.copytree(student, tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    for tensor in weights.values():
        tensor.view(-1)[0] = value
    save_file(weights, folder / "model.safetensors")
    argv = ["sample", str(folder), "--output", str(tmp_path / "drawn"), "--num-images", "3"]
    assert "not finite" in refused(capsys, *argv)
    assert not (tmp_path / "drawn").exists()


CONFIGURATIONS = {
    "depth": [16.0, True, "2", 10**9, 0, -1, None, 2**63, [2]],
    "input_size": [2**63, 8.0, 10**6],
    "hidden_size": [10**7, 0, 2.5],
    "num_classes": [10**12, -3],
    "num_heads": [0, 2.0, 10**9],
    "mlp_ratio": [float("nan"), float("inf"), 1e300, -1.0, "4"],
    "norm2_eps": [float("nan"), -1.0, 1e308],
    "qk_norm": [1, "yes"],
    "gelu": [1, "relu"],
    "routing": [{"kind": 1}, {"streams": 10**9}, {"streams": 2.0}, {"anchor": 1}, {"chunk_size": True}, 3],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in CONFIGURATIONS.items() for value in values]
)
def test_shapes_of_models(student: Path, tmp_path: Path, field: str, value: object) -> None:
    folder = shutil.copytree(student, tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"config\.json"):
        SiT.from_pretrained(folder)
    assert time.monotonic() - started < 2


def test_a_shape_beyond_the_weights_is_found_before_memory_is_asked_for(student: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(student, tmp_path / "student")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 2**13, "depth": 2**10}))
    with pytest.raises(
        ValueError, match=r"is of a model of over 274,\d+,\d+,\d+ parameters; model\.safetensors has \d+"
    ):
        SiT.from_pretrained(folder)


@pytest.fixture(scope="module")
def statistics() -> ReferenceStatistics:
    return ReferenceStatistics.load(asset("data.npz"))


def _diagonal(array: np.ndarray) -> None:
    array[3, 3] *= -1


def _off(array: np.ndarray) -> None:
    array[1, 2] = array[2, 1] = 10 * array[1, 1] + 10 * array[2, 2]


def _lopsided(array: np.ndarray) -> None:
    array[1, 2] += 0.5 * np.sqrt(array[1, 1] * array[2, 2])
    array[1, 2] = min(array[1, 2], np.sqrt(array[1, 1] * array[2, 2]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_diagonal, r"bad\.npz: sigma has a negative variance, -.*, in row 3"),
        (_off, r"bad\.npz: sigma is no covariance: a value is larger"),
        (_lopsided, r"bad\.npz: sigma is no covariance: it is not symmetric"),
    ],
)
def test_covariances(statistics, tmp_path: Path, change: Callable[[np.ndarray], None], message: str) -> None:
    before = statistics.sigma.copy()
    change(statistics.sigma)
    statistics.save(tmp_path / "bad.npz")
    statistics.sigma[:] = before
    with pytest.raises(ValueError, match=message):
        ReferenceStatistics.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "line",
    ["garbage", "[]", "{}", '{"step": "2"}', '{"step": true}', '{"step": 2, "loss": "high"}', "[" * 10**5, "\x00"],
)
def test_lines_of_the_log(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("optim", "lr", 1e308),
        ("optim", "lr", -1.0),
        ("optim", "betas", [0.9, 1 - 1e-16]),
        ("optim", "betas", [0.9, 0.9999999999]),
        ("optim", "weight_decay", 1e308),
        ("optim", "warmup_steps", 10**30),
        ("train", "batch_size", 10**15),
        ("train", "seed", 2**70),
        ("train", "steps", 10**30),
    ],
)
def test_settings_that_are_finite_and_absurd(section: str, field: str, value: object) -> None:
    values = {"output": "x", "start": {"path": "embedded"}, section: {field: value}}
    with pytest.raises(UserError, match=rf"{section}\.{field}"):
        build_config(TrainConfig, values)


def test_weights_that_change_their_sign_are_no_decay() -> None:
    with pytest.raises(UserError, match=r"optim\.weight_decay times lr must be at most 1"):
        OptimConfig(lr=10.0, weight_decay=10.0)


def test_what_is_meant_is_taken(student: Path, tmp_path: Path) -> None:
    assert main(["sample", str(student), "--output", str(tmp_path / "drawn"), "--num-images", "3"]) == 0
