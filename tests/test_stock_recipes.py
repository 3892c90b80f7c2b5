"""The recipes for text to image: their commands work as they are written, and their figures are the plan's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from distill.cli import main
from distill.config import read_values
from tests.stock_folders import SHAPES, stock_folder
from tests.test_recipes import EXPECTED, ROOT, commands, planned

RECIPES = {path.stem: path for path in (ROOT / "configs/text_to_image").glob("*.yaml")}
STAND_INS = {
    "qwen_image_dmd_lora": ("qwen_image", "Qwen-Image", "qwen"),
    "sd35_medium_dmd_lora": ("sd35", "sd35_medium", "sd35"),
    "wan21_t2v_1_3b_dmd_lora": ("wan", "wan21", "wan21"),
}


def test_there_are_recipes() -> None:
    assert RECIPES.keys() == STAND_INS.keys()


@pytest.mark.parametrize("name", STAND_INS)
def test_its_commands_work_as_they_are_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With small weights in place of the public ones; what would train is run with --dry-run."""
    kind, model, prompts = STAND_INS[name]
    transformer, encoded = stock_folder(kind, tmp_path / "made")
    assert encoded is not None
    shutil.copytree(transformer, tmp_path / model / "transformer")
    shutil.copytree(encoded, tmp_path / "prompts" / prompts)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    verbs = []
    for words in commands(RECIPES[name]):
        if words[0] == "python":
            assert all(word in (ROOT / words[1]).read_text() for word in words if word.startswith("--")), words
            continue
        verbs.append(words[1])
        if words[1] == "plan":  # of the real size, see below
            assert Path(words[2]).is_file() and words[3] == "--model"
        elif words[1] == "retrofit":
            shape = [str(size) for size in SHAPES[kind]]
            options = [word for word in words[2:] if not word.isdecimal() and word != "--sample-shape"]
            assert main(["retrofit", *options, "--sample-shape", *shape]) == 0, capsys.readouterr().err
        else:
            assert main([*words[1:], "--dry-run"]) == 0, capsys.readouterr().err
    assert verbs == ["retrofit", "plan", "run"]
    values = read_values(RECIPES[name])
    assert f"-> {values['output']}: 4 steps" in capsys.readouterr().out
    assert values["student"]["t_list"] == [1.0, 0.9, 0.75, 0.5] and values["roles"]["lora_rank"] == 64
    said = json.loads((tmp_path / values["teacher"]["path"] / "routing.json").read_text())
    assert said["sources"] == "written" and said["routing"]["scale"] == "count"


@pytest.mark.slow  # a forward and a backward pass of billions of parameters, without values: a minute and more
@pytest.mark.parametrize("name", STAND_INS)
def test_its_expected_figures_are_the_plans(name: str) -> None:
    text = RECIPES[name].read_text()
    assert "estimates of `plan`" in text and "not measured" in text
    lines = [match.groups() for line in text.splitlines() if (match := EXPECTED.fullmatch(line))]
    assert lines
    for processes, strategy, override, gib, hours, device in lines:
        plan = planned(RECIPES[name], int(processes), strategy or "ddp", *([override] if override else []))
        of_device = next(entry for entry in plan["devices"] if entry["name"] == device)
        assert float(gib) == pytest.approx(plan["peak"] / 2**30, abs=0.05)
        assert float(hours) == pytest.approx(of_device["hours"], abs=0.05)
        assert of_device["fits"]
