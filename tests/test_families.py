"""Model families: a backbone that is no SiT, from its folder through the pipeline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dar import SiT
from distill.assets import asset
from distill.config import EvalConfig
from distill.conformance import GaussianClasses
from distill.models import load_model
from distill.models.families import FAMILIES, register
from distill.verbs.evaluate import evaluate
from distill.verbs.load import load
from distill.verbs.run import run
from tests.test_cli import refused


def is_gaussian(folder: Path) -> bool:
    """By its configuration alone: means of (K, C, H, W)."""
    file = folder / "config.json"
    return file.is_file() and set(json.loads(file.read_text())) == {"shape"}


@pytest.fixture
def gaussian_family() -> Iterator[None]:
    register("gaussian", reads=is_gaussian)(GaussianClasses.from_pretrained)
    yield
    del FAMILIES["gaussian"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    GaussianClasses(0.5 * torch.randn(2, 1, 28, 28, generator=generator), 0.3).save_pretrained(tmp_path / "gaussian")
    return tmp_path / "gaussian"


def test_a_folder_goes_to_the_family_that_reads_it(folder: Path, gaussian_family: None) -> None:
    assert isinstance(load_model(folder), GaussianClasses)
    assert isinstance(load_model("embedded"), SiT) and isinstance(load_model(asset("teacher")), SiT)


def test_a_name_is_taken_once(gaussian_family: None) -> None:
    with pytest.raises(ValueError, match="model family 'gaussian' is registered already"):
        register("gaussian", reads=is_gaussian)(GaussianClasses.from_pretrained)


def test_another_family_goes_through_the_pipeline(folder: Path, tmp_path: Path, gaussian_family: None) -> None:
    done = run(
        {
            "output": str(tmp_path / "run"),
            "teacher": {"path": str(folder), "steps": 4, "cfg_scale": 1.0},
            "student": {"steps": 1},
            "objective": {"fake_score": {"updates": 1}},
            "train": {"steps": 2, "batch_size": 4},
            "evaluate": {"num_images": 8, "teacher_reference": None, "bootstrap": 2},
        }
    )
    assert done is not None and isinstance(load(done.student).model, GaussianClasses)
    measured = evaluate(done.student, EvalConfig(num_images=8, teacher_reference=None, bootstrap=2)).measured
    assert measured.num_steps == 1


def test_what_only_a_sit_can_do_is_refused_by_name(
    folder: Path, tmp_path: Path, gaussian_family: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"output: {tmp_path / 'run'}\nteacher: {{path: {folder}}}\nroles: {{trainable: lora}}\n")
    message = refused(capsys, "run", str(config))
    assert "roles.trainable = lora needs a SiT" in message and "GaussianClasses" in message
