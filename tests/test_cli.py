"""The command line, as a user meets it: whole runs of seconds, and one clear line for each mistake."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dar import SiT
from distill.assets import asset
from distill.cli import main
from distill.config import read_values
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.evaluator import Evaluator
from distill.files import new_folder
from distill.metrics import ReferenceStatistics
from distill.sampling.drawn import DrawnImages
from distill.sampling.samplers import save_student
from distill.training.run_log import read_log
from tests.conftest import without_time

ROOT = Path(__file__).parents[1]
TINY_TRAIN = """
output: {output}
model: {{input_size: 8, patch_size: 4, in_channels: 1, hidden_size: 16, depth: 1, num_heads: 2, num_classes: 2,
        routing: {{chunk_size: 2}}}}
data: {{name: {name}, path: {data}}}
train: {{steps: 2, batch_size: 4, log_every: 1, grid_every: 2, save_every: 1}}
grid_steps: 2
"""
QUICK = [
    "train.steps=2",
    "train.batch_size=2",
    "evaluate.num_images=20",
    "evaluate.bootstrap=4",
    "teacher.steps=3",
    "watch.num_images=10",
]


def write_idx(folder: Path, num: int = 8) -> Path:
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (num, 8, 8), dtype=np.uint8)
    labels = np.arange(num, dtype=np.uint8) % 2
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return folder


def train_config(tmp_path: Path, data: Path, name: str = "idx") -> str:
    path = tmp_path / "train.yaml"
    path.write_text(TINY_TRAIN.format(output=tmp_path / "teacher_run", data=data, name=name))
    return str(path)


def run_config(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "run.yaml"
    path.write_text(f"output: {tmp_path / 'run'}\nstudent: {{steps: 2}}\nfake_score: {{updates: 1}}\n{text}")
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of error that a refused command prints; its exit code is 2."""
    assert main(argv) == 2
    *notes, line = capsys.readouterr().err.strip().splitlines()
    assert all(note.endswith("its files are not checked") for note in notes), notes
    assert line.startswith("dar-distill: error: ")
    return line


def test_help_answers_without_torch() -> None:
    code = "import sys; from distill.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_run_sample_evaluate_and_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    assert main(["run", config, *QUICK]) == 0
    folder = tmp_path / "run"
    page = (folder / "report" / "report.html").read_text()
    assert "student, 2 steps" in page and "teacher, 3 steps" in page and "stand-in" in page
    assert [record["step"] for record in read_log(folder)] == [1, 2]
    assert json.loads((folder / "student" / "sampler.json").read_text())["t_list"] == [1.0, 0.5]
    assert {path.stem for path in (folder / "measures").iterdir()} == {
        "student_2_steps", "teacher_2_steps", "teacher_3_steps"
    }  # fmt: skip

    assert (
        main(["sample", str(folder), "--output", str(tmp_path / "drawn"), "--num-images", "6", "--classes", "3,9"]) == 0
    )
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn[:2] == ["000000_dress.png", "000001_ankleboot.png"] and "grid.png" in drawn

    assert main(["evaluate", str(folder), "--output", str(tmp_path / "eval"), "--num-images", "20"]) == 0
    measured = json.loads((tmp_path / "eval" / "measures.json").read_text())
    assert measured["num_images"] == 20 and measured["measures"]["frechet"]["value"] > 0

    shutil.copytree(folder / "student", tmp_path / "other")
    argv = ["compare", str(folder), str(tmp_path / "other"), "--output", str(tmp_path / "page"), "--num-images", "20"]
    assert main([*argv, "--steps", "3"]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "run, 2 steps" in page and "other, 2 steps" in page


def test_train_and_its_teacher_folder(tmp_path: Path) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert main(["train", config]) == 0
    assert (tmp_path / "teacher_run" / "teacher" / "model.safetensors").is_file()
    assert main(["train", config, "--resume"]) == 0
    assert (
        main(["sample", str(tmp_path / "teacher_run" / "teacher"), "--output", str(tmp_path / "s"), "--steps", "2"])
        == 0
    )


def test_dry_run_prints_roles_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", run_config(tmp_path), "--dry-run"]) == 0
    text = capsys.readouterr().out
    for word in ("teacher", "student", "fake_score", "EMA", "parameters", "GiB", "updates", "FLOP"):
        assert word in text
    assert not (tmp_path / "run").exists()


def test_unknown_key_and_bad_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    assert "did you mean student.steps?" in refused(capsys, "run", config, "student.step=2")
    assert "train.steps must be at least 1; got 0" in refused(capsys, "run", config, "train.steps=0")
    assert "student.steps must be at least 1; got 0" in refused(capsys, "run", config, "student.steps=0")
    assert "no configuration file" in refused(capsys, "run", str(tmp_path / "none.yaml"))


def test_a_student_is_no_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = student_folder(tmp_path / "student", 2)
    line = refused(capsys, "run", run_config(tmp_path, f"teacher: {{path: {tmp_path}}}"))
    assert "is a student; give the model that it was distilled from" in line
    for t_list in ([0.5, 1.0], [1.5, 0.5], [1.0, 0.0], []):
        (student / "sampler.json").write_text(json.dumps({"t_list": t_list}))
        line = refused(capsys, "sample", str(student), "--output", str(tmp_path / "no"))
        assert "t_list must fall from at most 1 and stay above 0" in line


def test_teacher_missing_or_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a folder" in refused(capsys, "run", run_config(tmp_path, "teacher: {path: /nowhere}"))
    broken = tmp_path / "broken"
    shutil.copytree(asset("teacher"), broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    line = refused(capsys, "run", run_config(tmp_path, f"teacher: {{path: {broken}}}"))
    assert "model.safetensors is not as it was written" in line
    assert not (tmp_path / "run").exists()


def test_statistics_of_other_images_are_refused_before_any_compute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: SiT
) -> None:
    tiny_model.save_pretrained(tmp_path / "teacher")
    config = run_config(tmp_path, f"teacher: {{path: {tmp_path / 'teacher'}}}\nevaluate: {{reference: embedded}}")
    assert "does not read images [1, 8, 8]" in refused(capsys, "run", config)
    assert not (tmp_path / "run").exists()


def student_folder(folder: Path, steps: int) -> Path:
    model = SiT.from_pretrained(asset("teacher"))
    save_student(model, torch.linspace(1, 0, steps + 1)[:-1], folder)
    return folder


def test_what_no_page_can_show_is_refused_before_drawing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "draw", lambda *_: pytest.fail("something is drawn"))
    output = ["--output", str(tmp_path / "page"), "--steps", "3"]
    assert "embedded is no student" in refused(capsys, "compare", "embedded", *output)
    student = str(student_folder(tmp_path / "a", 2))
    assert "arms need different names" in refused(capsys, "compare", student, student, *output)
    many = [str(student_folder(tmp_path / str(number), 2)) for number in range(9)]
    assert "9 samplers with role 'student'; a report shows at most 8" in refused(capsys, "compare", *many, *output)
    assert not (tmp_path / "page").exists()


@pytest.mark.usefixtures("small_teacher")
def test_student_with_as_many_steps_as_the_teacher(tmp_path: Path) -> None:
    student = student_folder(tmp_path / "few", 2)
    argv = ["compare", str(student), "--output", str(tmp_path / "page"), "--num-images", "10", "--steps", "2"]
    assert main([*argv, "--solver", "heun"]) == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "few, 2 steps" in page and page.count('alt="Images of teacher, 2 steps"') == 1


@pytest.mark.usefixtures("small_teacher")
def test_a_run_cut_off_while_it_draws_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["run", run_config(tmp_path), *QUICK, "evaluate.batch_size=4"]
    drawn: list[int] = []
    append = DrawnImages.append

    def cut_off(images: DrawnImages, *given: Any) -> None:
        drawn.append(images.done)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        append(images, *given)

    monkeypatch.setattr(DrawnImages, "append", cut_off)
    assert main(argv) == 75
    assert (tmp_path / "run" / "drawn").is_dir() and (tmp_path / "run" / "student").is_dir()
    assert main([*argv, "--resume"]) == 0
    assert drawn[:5] == [0, 4, 8, 12, 12]
    assert (tmp_path / "run" / "report" / "report.html").is_file() and not (tmp_path / "run" / "drawn").exists()
    # Trained further, the student is another, and nothing of the old one is taken up.
    (tmp_path / "run" / "drawn").mkdir()
    (tmp_path / "run" / "drawn" / "0.json").write_text("of another")
    assert main([*argv, "train.steps=3", "--resume"]) == 0


@pytest.mark.parametrize("damage", ["no measures", "other images"])
def test_statistics_of_the_teacher_are_looked_at_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    for name in ("teacher.npz", "teacher.json"):
        shutil.copyfile(asset(name), tmp_path / name)
    if damage == "no measures":
        (tmp_path / "teacher.json").unlink()
    else:
        statistics = ReferenceStatistics.load(tmp_path / "teacher.npz")
        dataclasses.replace(statistics, image_shape=(3, 28, 28)).save(tmp_path / "teacher.npz")
    config = run_config(tmp_path, f"evaluate: {{teacher_reference: {tmp_path / 'teacher.npz'}}}")
    line = refused(capsys, "run", config)
    said = ["teacher.json"] if damage == "no measures" else ["teacher_reference", "images [3, 28, 28], not [1, 28, 28]"]
    assert all(words in line for words in said)
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_no_pair_of_one_class_and_writes_both_files_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["evaluate", str(student_folder(tmp_path / "few", 1)), "--output", str(tmp_path / "eval")]
    argv += ["--reference", "embedded"]
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "statistics", lambda *_: (_ for _ in ()).throw(OSError("out of memory")))
        assert main([*argv, "--num-images", "5"]) == 2
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["drawn"]
    assert main([*argv, "--num-images", "5"]) == 0
    measured = json.loads((tmp_path / "eval" / "measures.json").read_text())["measures"]
    assert "lpips_diversity" not in measured and "frechet" in measured
    assert (tmp_path / "eval" / "measures.npz").is_file()


def test_class_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "sample", "embedded", "--output", str(tmp_path / "s"), "--classes", "3,10")
    assert "class 10 is out of range; the model has 0 to 9" in line
    assert not (tmp_path / "s").exists()


def test_data_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_idx(tmp_path / "data")
    line = refused(capsys, "train", train_config(tmp_path, data), "train.batch_size=64")
    assert "64" in line and "8" in line
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "train", train_config(tmp_path, tmp_path / "empty", "images"))
    images = tmp_path / "images" / "a"
    images.mkdir(parents=True)
    Image.new("L", (8, 6)).save(images / "wide.png")
    assert "wide.png" in refused(capsys, "train", train_config(tmp_path, tmp_path / "images", "images"))
    (images / "wide.png").write_bytes(b"\x89PNG and nothing more")
    assert "wide.png" in refused(capsys, "train", train_config(tmp_path, tmp_path / "images", "images"))
    assert not (tmp_path / "teacher_run").exists()


@pytest.mark.usefixtures("small_teacher")
def test_output_that_holds_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep me")
    assert "is not empty" in refused(capsys, "run", run_config(tmp_path))
    assert "holds no run" in refused(capsys, "run", run_config(tmp_path), "--resume")
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep me"


def test_divergence_ends_with_code_3_and_names_the_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert main(["train", config, "optim.lr=100", "train.steps=40"]) == 3
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "teacher: the" in last and "is not finite in its update" in last


def test_a_folders_weights_are_not_read_without_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """By their names they would pass for SiT's, whose velocity points the other way."""
    file = asset("teacher") / "model.safetensors"
    assert f"{file} is part of the model folder {file.parent}" in refused(capsys, "inspect", str(file))


def test_students_of_other_classes_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = SiT.from_pretrained(asset("teacher"))
    save_student(SiT(dataclasses.replace(teacher.config, num_classes=5)), torch.tensor([1.0]), tmp_path / "five")
    words = refused(capsys, "compare", str(tmp_path / "five"), "--output", str(tmp_path / "page"))
    assert "knows 5 classes; the teacher 10" in words


def test_a_measured_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "measures.json").write_text("{}")
    assert "is not empty" in refused(capsys, "evaluate", "embedded", "--output", str(tmp_path))
    assert (tmp_path / "measures.json").read_text() == "{}"


def test_no_as_yaml_reads_it_is_a_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", run_config(tmp_path), "train.mixed_precision=no", "--dry-run"]) == 0
    assert "mixed: no" in capsys.readouterr().out
    assert "must be one of no, bf16, fp16" in refused(capsys, "run", run_config(tmp_path), "train.mixed_precision=half")


@pytest.mark.parametrize("option", ["--batch-size", "--steps"])
def test_a_number_that_is_none_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sample", "embedded", "--output", "x", option, "0"])
    assert ended.value.code == 2
    assert f"argument {option}: must be a whole number of at least 1; got '0'" in capsys.readouterr().err


def test_stopped_by_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distill.verbs.sample.sample", interrupt)
    monkeypatch.setattr("distill.verbs.run.run", interrupt)
    assert main(["sample", "embedded", "--output", "x"]) == 130
    assert "--resume" not in capsys.readouterr().err
    assert main(["run", "configs/quickstart.yaml"]) == 75
    said = capsys.readouterr().err
    assert "stopped by SIGINT; go on with: dar-distill run configs/quickstart.yaml --resume" in said


def test_a_folder_beside_one_that_is_not_there_yet_is_not_emptied(tmp_path: Path) -> None:
    """`new/..` does not exist, and is this folder as soon as `new` is made."""
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        new_folder(str(tmp_path / "new" / ".."))
    assert (tmp_path / "precious.txt").exists() and not (tmp_path / "new").exists()


def test_overrides_stand_before_and_after_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    expected = None
    for words in (
        [config, "train.steps=7", "student.steps=3", "--dry-run"],
        [config, "--dry-run", "train.steps=7", "student.steps=3"],
        ["--dry-run", config, "train.steps=9", "train.steps=7", "student.steps=3"],
        [config, "train.steps=9", "--dry-run", "train.steps=7", "student.steps=3"],
    ):
        assert main(["run", *words]) == 0
        expected = expected or capsys.readouterr().out
        assert expected and "7 of 64 samples" in expected and ": 3 steps from" in expected
    for wrong in (["run", config, "--dry-run", "--fast=1"], ["sample", "embedded", "--output", "x", "a=b"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_recipes_are_listed_and_copied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert {"quickstart", "train_fashion", "imagenet256/sit_xl_dmd"} <= set(names)
    assert not any(name.startswith(("accelerate", "slurm")) for name in names)
    assert "The shipped teacher becomes a 4-step student" in lines[names.index("quickstart")]
    assert main(["recipes", "--write", "quickstart"]) == 0
    assert (tmp_path / "quickstart.yaml").read_text() == (ROOT / "configs/quickstart.yaml").read_text()
    assert "quickstart.yaml is there already" in refused(capsys, "recipes", "--write", "quickstart")
    assert main(["recipes", "--write", "imagenet256/sit_xl_dmd", "--output", "mine/xl.yaml"]) == 0
    assert (tmp_path / "mine" / "xl.yaml").is_file()
    assert "--write must be one of" in refused(capsys, "recipes", "--write", "nothing")
    assert "give --write NAME" in refused(capsys, "recipes", "--output", "x.yaml")


@pytest.mark.usefixtures("small_teacher")
def test_a_reader_that_has_enough_is_no_mistake(tmp_path: Path) -> None:
    read, written = os.pipe()
    os.close(read)  # as `| head -1` does before the second line
    command = [sys.executable, "-m", "distill", "recipes"]
    with open(written, "w") as stdout:  # noqa: PTH123
        ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_a_recipe_runs_by_name_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its student has as many steps as the teacher, who is then measured once."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quickstart", *QUICK, "teacher.steps=4", "objective.fake_score.warmup_updates=0"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    folder = tmp_path / "runs" / "quickstart"
    assert (folder / "report" / "report.html").is_file()
    assert {path.stem for path in (folder / "measures").iterdir()} == {"student_4_steps", "teacher_4_steps"}
    message = "no configuration file quickstrt, and no shipped recipe of that name"
    with pytest.raises(UserError, match=message):
        main(["--traceback", "run", "quickstrt"])


@pytest.mark.usefixtures("small_teacher")
def test_a_run_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    """Its configuration has `dmd` and `fake_score` as sections of their own, and lacks what is younger."""
    config, overrides = run_config(tmp_path), [*QUICK, "train.save_every=1"]
    assert main(["run", config, *overrides]) == 0
    saved = tmp_path / "run" / "config.yaml"
    values = read_values(saved)
    objective = values.pop("objective")
    values.pop("data")
    values["fake_score"] = objective.pop("fake_score")
    values["dmd"] = {name: value for name, value in objective.items() if name != "name"}
    saved.write_text(json.dumps(values))
    before = without_time(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000002")
    assert main(["run", config, *overrides, "--resume"]) == 0
    assert without_time(tmp_path / "run") == before
    assert "objective:" in saved.read_text()
