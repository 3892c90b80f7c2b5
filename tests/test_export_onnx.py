"""The few-step sampler as one graph: what onnxruntime and torch.export draw, in files that others run."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import distill
from dar import RoutingConfig
from distill.cli import main
from distill.config import TeacherConfig
from distill.exporting import sit_onnx
from distill.exporting.base import Source
from distill.exporting.sit_onnx import StepGraph, in_int8, looped, run, save, step_graph
from distill.render import to_uint8
from distill.sampling import noise_for
from distill.sampling.samplers import load_sampler
from tests.test_export import NAMES, student_folder

ROOT = Path(__file__).parents[1]
RUNNER_ALONE = """
import runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dar", "distill", "torch", "onnx", "PIL"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""


def source_of(folder: Path) -> Source:
    return Source(load_sampler(str(folder), TeacherConfig(path=str(folder))), folder)


def given(source: Source, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """noise, labels, and the student's own samples of them."""
    sampler = source.sampler
    noise = noise_for(range(num), sampler.num_noises, sampler.model.sample_shape, 5)
    labels = torch.arange(num) % 4  # the null class, too
    return noise, labels, sampler.draw(noise, labels)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A routed student with fresh noise, and its folder for ONNX."""
    root = tmp_path_factory.mktemp("onnx")
    folder = student_folder(root / "student", RoutingConfig(chunk_size=1), depth=1, t_list=(1.0, 0.4))
    assert main(["export", str(folder), str(root / "out"), "--to", "onnx"]) == 0
    return {"source": folder, "out": root / "out"}


@pytest.mark.parametrize("num", [1, 5])
def test_onnxruntime_draws_the_same_for_any_number(num: int, exported: dict[str, Path]) -> None:
    noise, labels, ours = given(source_of(exported["source"]), num)
    torch.testing.assert_close(run(exported["out"] / "sampler.onnx", noise, labels), ours, rtol=0, atol=1e-5)


def test_the_runner_needs_numpy_and_onnxruntime_alone(exported: dict[str, Path], tmp_path: Path) -> None:
    """It draws what the graph does, and writes it as a picture."""
    picture = tmp_path / "row.png"
    argv = [str(exported["out"] / "run_onnx.py"), "--classes", "shoe,2", "--seed", "7", "--output", str(picture)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUNNER_ALONE, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    noise = torch.from_numpy(np.random.default_rng(7).standard_normal((2, 2, 1, 8, 8), dtype=np.float32))
    ours = to_uint8(source_of(exported["source"]).sampler.draw(noise, torch.tensor([1, 2])))
    pixels = np.asarray(Image.open(picture))
    expected = torch.cat([ours[0, 0], ours[1, 0]], dim=1).numpy()
    assert pixels.shape == (8, 16) and np.abs(pixels.astype(int) - expected).max() <= 1


def test_files_say_nothing_of_this_machine(exported: dict[str, Path]) -> None:
    for file in exported["out"].iterdir():
        content = file.read_bytes()
        assert str(ROOT).encode() not in content and b"forward" not in content, file
    about = json.loads((exported["out"] / "sampler.json").read_text())
    assert about["classes"] == dict(zip("012", NAMES, strict=True)) and about["num_noises"] == 2
    assert "float32\n(2, B, 1, 8, 8)" in (exported["out"] / "README.md").read_text()


def test_int8_is_smaller_and_near(exported: dict[str, Path], tmp_path: Path) -> None:
    """Of a model whose weights are most of it."""
    folder = student_folder(tmp_path / "wide", RoutingConfig(kind="residual"), depth=1, hidden_size=64, t_list=(1.0,))
    plain, small = (tmp_path / name for name in ("plain.onnx", "small.onnx"))
    source = source_of(folder)
    with sit_onnx.quiet():
        step = step_graph(StepGraph(source.sampler.model).eval().requires_grad_(False), source)
        save(looped(step, [1.0], 0, 1), plain)
        save(looped(in_int8(step), [1.0], 0, 1), small)
    noise, labels, ours = given(source, 4)
    error = (run(small, noise, labels) - ours).abs().max() / ours.square().mean().sqrt()
    assert 1e-5 < error < 0.05
    torch.testing.assert_close(run(plain, noise, labels), ours, rtol=0, atol=1e-5)
    assert small.stat().st_size < 0.5 * plain.stat().st_size


def test_weights_beside_the_graph_and_a_list_that_follows_the_ode(tmp_path: Path) -> None:
    """One export of what is rare: token queries, DDPM's time, an ODE step, weights in a file of their own."""
    routing = RoutingConfig(query="dynamic", chunk_size=1)
    folder = student_folder(
        tmp_path / "student", routing, 1, (0.9, 0.6, 0.3), depth=1, prediction="ddpm_eps", num_classes=3
    )
    source = source_of(folder)
    with sit_onnx.quiet():
        step = step_graph(StepGraph(source.sampler.model).eval().requires_grad_(False), source)
        save(looped(step, source.sampler.t_list.tolist(), 1, 3), tmp_path / "sampler.onnx", most_bytes=1000)
    assert (tmp_path / "sampler.onnx.data").stat().st_size > 10_000
    noise, labels, ours = given(source, 3)
    torch.testing.assert_close(run(tmp_path / "sampler.onnx", noise, labels), ours, rtol=1e-5, atol=1e-4)


def test_a_program_of_torch_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that follows its ODE to the end and takes one noise; latents are said to be such."""
    folder = student_folder(
        tmp_path / "student", RoutingConfig(query="static", chunk_size=1), 1, (1.0, 0.5), depth=1, in_channels=4
    )
    done = distill.export(folder, tmp_path / "out", "torch")
    assert any("the graph gives latents, 4 x 8 x 8" in note for note in done.notes)
    assert any("largest difference" in note and "edge" not in note for note in done.notes)
    program = torch.export.load(tmp_path / "out" / "sampler.pt2").module()
    for num in (1, 3):
        noise, labels, ours = given(source_of(folder), num)
        assert len(noise) == 1
        torch.testing.assert_close(program(noise, labels), ours, rtol=0, atol=1e-5)
    assert str(ROOT).encode() not in (tmp_path / "out" / "sampler.pt2").read_bytes()
    monkeypatch.setattr(sys, "argv", ["run_torch.py", "--classes", "bag,0", "--output", str(tmp_path / "a.pt")])
    runner = tmp_path / "out" / "run_torch.py"
    assert "dar" not in runner.read_text() and "distill" not in runner.read_text()
    runpy.run_path(str(runner))
    noise = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = source_of(folder).sampler.draw(noise, torch.tensor([2, 0]))
    torch.testing.assert_close(torch.load(tmp_path / "a.pt"), ours, rtol=0, atol=1e-5)
