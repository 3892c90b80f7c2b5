"""What a training asks accelerate for, and what is refused before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from distill.cli import main
from distill.config import LoopConfig
from distill.errors import UserError
from distill.objectives import RunConfig
from distill.training.devices import make_accelerator
from tests.test_cli import QUICK, refused, run_config, train_config, write_idx


class Notebook(GeneralTracker):
    """A tracker that, as tensorboard does, writes into the run's folder from the start."""

    name = "tensorboard"
    requires_logging_directory = True
    main_process_only = True
    told: dict[str, Any]

    def __init__(self, run_name: str, logging_dir: str, **_: Any) -> None:
        super().__init__()
        self.folder = Path(logging_dir) / run_name
        self.folder.mkdir(parents=True)

    @property
    def tracker(self) -> Notebook:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        (self.folder / "settings").write_text("\n".join(f"{name}={value}" for name, value in values.items()))

    def log(self, values: dict[str, float], step: int, **_: Any) -> None:
        with (self.folder / "figures").open("a") as file:
            file.write(f"{step} {values['teacher/loss']}\n")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Notebook)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])


def test_trackers_get_the_configuration_and_the_figures(tmp_path: Path, notebook: None) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert main(["train", config, "train.trackers=[tensorboard]"]) == 0
    folder = tmp_path / "teacher_run" / "dar-distill"
    settings = (folder / "settings").read_text().splitlines()
    assert {"train.steps=2", "model.routing.chunk_size=2", "train.trackers=['tensorboard']"} <= set(settings)
    assert [line.split()[0] for line in (folder / "figures").read_text().splitlines()] == ["1", "2"]


def test_trackers_that_are_missing_are_named_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.WANDB])
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    line = refused(capsys, "train", config, "train.trackers=[aim,wandb,tensorboard]")
    assert "train.trackers: aim, tensorboard is not installed" in line
    assert "notebooks" in refused(capsys, "train", config, "train.trackers=[notebooks]")
    assert not (tmp_path / "teacher_run").exists()


def test_half_precision_with_a_loss_scale_needs_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        line = refused(capsys, "run", run_config(tmp_path), *QUICK, "train.mixed_precision=fp16")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert "train.mixed_precision = fp16 needs a GPU, and this is cpu; take bf16 or no" in line
    assert not (tmp_path / "run").exists()


def test_micro_batches_are_ours_whatever_the_environment_says(accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    config = RunConfig("out", train=LoopConfig(accumulation=2, batch_size=4))
    assert make_accelerator(config).gradient_accumulation_steps == 1
    with pytest.raises(UserError, match=r"must be a multiple of processes x accumulation = 3; got 4"):
        make_accelerator(replace(config, train=_uneven(config.train)))


def _uneven(loop: LoopConfig) -> LoopConfig:
    """As its own check would not let it through."""
    loop.accumulation = 3
    return loop
