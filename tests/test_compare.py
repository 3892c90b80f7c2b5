"""The page that compares arms: students, groups of trainings, and pictures from elsewhere."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dar import SiT
from distill.assets import asset
from distill.cli import main
from distill.sampling.samplers import save_student
from distill.verbs.compare import _short
from tests.conftest import perturbed

QUICK = ["--num-images", "20", "--steps", "2", "--batch-size", "20", "--offline"]


def student(folder: Path, noise: float) -> str:
    torch.manual_seed(int(1e6 * noise))
    model = perturbed(SiT.from_pretrained(asset("teacher")), std=noise)
    save_student(model, torch.tensor([1.0, 0.5]), folder)
    return str(folder)


def test_groups_and_pictures_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [student(tmp_path / f"run{i}", 0.001 * (1 + i)) for i in range(3)]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        Image.fromarray(torch.randint(0, 255, (28, 28), dtype=torch.uint8).numpy()).save(pictures / f"{i}.png")
    output = tmp_path / "page"
    groups = ["--group", f"two={runs[1]},{runs[2]}", "--images", f"noise={pictures}"]
    assert main(["compare", runs[0], *groups, "--output", str(output), *QUICK]) == 0
    said = capsys.readouterr().out
    assert "two against run0" in said and "noise against run0" in said and "Edges:" in said
    more = ["compare", runs[0], "--images", f"noise={pictures}", "--output", str(tmp_path / "more"), *QUICK]
    assert main([*more, "--num-images", "30"]) == 2
    assert "--images noise: 20 pictures; students draw --num-images 30" in capsys.readouterr().err
    page = (output / "report.html").read_text()
    for words in (
        "two against run0",
        "two, 2 steps, training 1 of 2",
        "Edges side by side",
        "By class",
        "half of the data",
    ):
        assert words in page
    assert page.index("two against run0") < page.index("Side by side")
    rows = list(csv.DictReader((output / "comparison.csv").open()))
    plain = json.loads((output / "comparison.json").read_text())["compared"]
    assert [one["first"] for one in plain] == ["two", "noise"]
    assert len(rows) == sum(len(one["differences"]) for one in plain) > 20
    grain = next(row for row in rows if row["first_arm"] == "noise" and row["measure"] == "grain")
    assert float(grain["gain"]) < 0 and float(grain["adjusted"]) < 0.01


def test_pictures_alone(tmp_path: Path) -> None:
    for name, level in (("flat", 0.0), ("grainy", 0.2)):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(8):
            values = torch.linspace(-0.8, 0.8, 24 * 24).view(24, 24) + level * torch.randn(24, 24)
            Image.fromarray(((values.clamp(-1, 1) + 1) * 127.5).byte().numpy()).save(folder / f"{i}.png")
    arms = ["--images", f"flat={tmp_path / 'flat'}", "--images", f"grainy={tmp_path / 'grainy'}"]
    argv = ["compare", *arms, "--data", str(tmp_path / "flat"), "--output", str(tmp_path / "page"), "--offline"]
    assert main(argv) == 0
    assert "grainy against flat" in (tmp_path / "page" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arms", "line"),
    [
        ([], "compare needs two arms"),
        (["--images", "a=a"], "compare needs two arms"),
        (["--images", "a=a", "--images", "b=small"], "--images b: pictures are [1, 8, 8]; others are [1, 12, 12]"),
        (["--images", "a=a", "--images", "b=one"], "--images b: 1 picture(s); at least 4 are needed"),
        (["--images", "a=a", "--images", "b=more"], "the folders hold {'a': 6, 'b': 7}; give an equal number"),
        (["--group", "a="], "must be NAME=PATH; got 'a='"),
        (["--group", "a=,"], "--group a names no run"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arms: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count, side in (("a", 6, 12), ("small", 6, 8), ("one", 1, 12), ("more", 7, 12)):
        Path(name).mkdir()
        for i in range(count):
            Image.new("L", (side, side), 10 * i).save(Path(name, f"{i}.png"))
    try:
        assert main(["compare", *arms, "--output", "page", "--offline"]) == 2
    except SystemExit as left:  # by argparse
        assert left.code == 2
    said = capsys.readouterr().err
    assert line in said and "Traceback" not in said
    assert not Path("page").exists()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["plain/seed0", "dar/seed0"], ["plain", "dar"]),
        (["r/a/x", "r/a/y", "r/b/x"], ["a/x", "a/y", "b/x"]),
        (["runs/a/student", "runs/b/student"], ["a", "b"]),
        (["r/a", "r/a"], ["a", "a"]),  # which is refused
    ],
)
def test_arms_are_called_by_what_tells_their_folders_apart(paths: list[str], names: list[str]) -> None:
    assert _short(paths) == names
