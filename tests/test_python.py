"""The Python interface: what the command line does, as functions that return objects and print nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distill
from distill.cli import main
from distill.config import LoopConfig, StudentConfig
from distill.objectives import DmdConfig, FakeScoreConfig
from distill.progress import logger, on_terminal, progress_bar

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick() -> distill.EvalConfig:
    return distill.EvalConfig(num_images=8, teacher_reference=None, bootstrap=2)


@pytest.fixture(autouse=True)
def nothing_is_shown() -> None:
    distill.show_progress(False)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_everything_from_python_prints_nothing(
    tmp_path: Path, quick: distill.EvalConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """distil from an object, load, sample, evaluate, compare: objects come back and nobody is talked to."""
    config = distill.RunConfig(
        str(tmp_path / "run"),
        teacher=distill.TeacherConfig(steps=2),
        student=StudentConfig(steps=2),
        objective=DmdConfig(fake_score=FakeScoreConfig(updates=1)),
        train=LoopConfig(steps=1, batch_size=2),
        evaluate=quick,
    )
    done = distill.run(config)
    assert done is not None and done.report.is_file()
    assert set(done.measured) == {"teacher, 2 steps", "student, 2 steps"}
    student = distill.load(done.student)
    drawn = distill.sample(student, 4, classes=[3, "7"])
    assert drawn.images.shape == (4, 1, 28, 28) and drawn.images.abs().max() <= 1
    assert drawn.y.tolist() == [3, 7, 3, 7] and drawn.names[1] == "sneaker"
    assert drawn.grid(rows=2).size == (2 * 84, 2 * 84)
    evaluation = distill.evaluate(student, quick, output=tmp_path / "measured")
    assert evaluation.measured.measures["frechet"].value > 0 and evaluation.notes
    assert (tmp_path / "measured" / "measures.npz").is_file()
    teacher = distill.TeacherConfig(steps=2)
    page = distill.compare([done.student], teacher, quick, output=tmp_path / "page")
    assert page.report.is_file() and "student, 2 steps" in page.measured
    assert capfd.readouterr() == ("", "")


def test_a_dictionary_is_a_configuration_and_its_errors_are_the_command_lines(tmp_path: Path) -> None:
    with pytest.raises(distill.UserError, match=r"student\.steps must be at least 1; got 0"):
        distill.run({"output": str(tmp_path), "student": {"steps": 0}})
    with pytest.raises(distill.UserError, match=r"did you mean train\.steps\?"):
        distill.train({"output": str(tmp_path), "train": {"stepps": 0}})
    with pytest.raises(distill.UserError, match=r"no configuration file quickstrt.*quickstart"):
        distill.run("quickstrt")


def test_a_configuration_is_the_same_however_it_is_given(tmp_path: Path) -> None:
    from distill.verbs.configs import config_of

    by_name = config_of(distill.RunConfig, "quickstart", ["train.steps=7"])
    by_file = config_of(distill.RunConfig, ROOT / "configs/quickstart.yaml", ["train.steps=7"])
    by_object = config_of(distill.RunConfig, config_of(distill.RunConfig, "quickstart"), ["train.steps=7"])
    assert by_name == by_file == by_object and by_name.train.steps == 7
    assert config_of(distill.RunConfig, by_name) is by_name
    plan = distill.plan(by_name)
    assert plan.loop.steps == 7 and distill.plan("train_fashion").title.startswith("train")


def test_the_command_line_draws_what_python_draws(tmp_path: Path) -> None:
    distill.sample(distill.load("embedded", steps=2), 3, seed=5, output=tmp_path / "python")
    argv = ["sample", "embedded", "--steps", "2", "--num-images", "3", "--seed", "5"]
    assert main([*argv, "--output", str(tmp_path / "shell")]) == 0
    for i in range(3):
        (name,) = (path.name for path in (tmp_path / "python").glob(f"00000{i}_*.png"))
        assert np.array_equal(pixels(tmp_path / "python" / name), pixels(tmp_path / "shell" / name))


def test_progress_is_shown_where_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    logger.info("unseen")
    assert not on_terminal() and progress_bar().disable
    distill.show_progress()
    distill.show_progress()  # twice is once
    logger.info("seen")
    assert capfd.readouterr() == ("", "seen\n")
    assert logging.getLogger().handlers is not logger.handlers


def test_retrofit_convert_and_inspect_return_what_they_did(tmp_path: Path, tiny_model) -> None:
    from dar import RoutingConfig, SiT
    from tests.conftest import perturbed, tiny_config

    plain = SiT(tiny_config(routing=RoutingConfig(kind="residual")))
    perturbed(plain).save_pretrained(tmp_path / "plain")
    done = distill.retrofit(tmp_path / "plain", tmp_path / "routed")
    assert done.kind == "dar" and done.parameters > 0 and done.worst < 1e-4
    assert distill.inspect(done.folder).config.routing.kind == "dar"
    torch.save(tiny_model.state_dict(), tmp_path / "model.pt")
    assert distill.inspect("embedded").num_parameters > 1e6


def test_the_notebook_runs(tmp_path: Path) -> None:
    """examples/quickstart.ipynb with short settings in the place of its own."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    settings = notebook.cells[1]
    assert settings.source.startswith("STEPS = ") and "NUM_IMAGES = " in settings.source
    settings.source = "import tests.conftest  # pictures are not rendered\nSTEPS, NUM_IMAGES = 1, 20"
    short = ["teacher.steps=2", "train.batch_size=2", "objective.fake_score.warmup_updates=0", "watch.num_images=10"]
    for cell in notebook.cells:
        cell.source = cell.source.replace("steps=50", "steps=2").replace("num_images=40", "num_images=10")
        cell.source = cell.source.replace('f"train.steps={STEPS}"', f'f"train.steps={{STEPS}}", *{short}')
    assert "\n".join(cell.source for cell in notebook.cells).count(str(short)) == 1
    where = {"metadata": {"path": str(tmp_path)}}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
    client.execute(env=environment)
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
