"""`convert` and `inspect` on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dar import SiT, load_pretrained
from distill.cli import main
from distill.errors import UserError
from distill.verbs.convert import classes_beside
from tests.checkpoint_files import CHANNELS, SIZE, Malicious, official_state, projectors, training_file
from tests.test_cli import refused


def saved(tmp_path: Path, content: Any, name: str = "file.pt") -> str:
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def drawn(model: SiT) -> torch.Tensor:
    x_t = torch.randn(2, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return model(x_t, torch.tensor([0.3, 0.8]), torch.tensor([0, 5]))


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_convert_writes_a_folder_that_loads(tmp_path, weights, capsys):
    path = saved(tmp_path, training_file(official_state(4, seed=1), official_state(4, seed=2), model="SiT-tiny"))
    target = tmp_path / "model"
    assert main(["convert", path, str(target), "--weights", weights, "--num-heads", "2"]) == 0
    expected = load_pretrained(path, weights=weights, num_heads=2)
    assert torch.equal(drawn(SiT.from_pretrained(target)), drawn(expected))
    assert f"{sum(p.numel() for p in expected.parameters()):,} parameters, t in [0, 1]" in capsys.readouterr().out


def test_convert_keeps_projectors_beside_the_model(tmp_path):
    path = saved(tmp_path, official_state(4) | projectors())
    target = tmp_path / "model"
    assert main(["convert", path, str(target), "--num-heads", "2"]) == 0
    kept = load_file(target / "projectors.safetensors")
    assert kept.keys() == projectors().keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in projectors().items())
    SiT.from_pretrained(target)


def test_convert_says_in_one_line_what_is_wrong_and_leaves_nothing(tmp_path, capsys):
    path, target = saved(tmp_path, official_state(8)), str(tmp_path / "model")
    assert "can be dit or sit; say which with format" in refused(capsys, "convert", path, target, "--num-heads", "2")
    assert "give num_heads" in refused(capsys, "convert", path, target, "--format", "dit")
    assert "is not there" in refused(capsys, "convert", str(tmp_path / "nowhere.pt"), target)
    bad = saved(tmp_path, {"a": Malicious(os.system, f"touch {tmp_path / 'touched'}")}, "bad.pt")
    assert "asks to run posix.system" in refused(capsys, "convert", bad, target)
    assert "asks to run posix.system" in refused(capsys, "inspect", bad)
    assert not (tmp_path / "touched").exists()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pt", "file.pt"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("")
    assert "is not empty" in refused(capsys, "convert", path, target, "--num-heads", "2", "--format", "sit")


def test_inspect_names_what_it_sees(tmp_path, capsys):
    state = official_state(4) | projectors()
    path = saved(tmp_path, training_file(state, state, model="SiT-tiny", num_heads=2, encoder_depth=2))
    assert main(["inspect", path]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "format REPA",
        "prediction velocity eps - x0, t = 0 data, t = 1 noise",
        "samples 4 x 8 x 8",
        "shape depth 3, width 16, patch 2, heads 2",
        "classes 5 and the null class 5",
        f"parameters {sum(tensor.numel() for tensor in official_state(4).values()):,}",
        "ema yes; sets: ema, model",
        "projectors 6 tensors, kept apart",
        "argument model = SiT-tiny",
    ):
        assert line in lines
    assert any(line.startswith("size ") and line.endswith(" MiB") for line in lines)


def test_inspect_answers_where_loading_has_to_ask(tmp_path, capsys):
    assert main(["inspect", saved(tmp_path, official_state(8))]) == 0
    text = capsys.readouterr().out
    assert "of DiT: eps on DDPM's schedule" in text and "of SiT: velocity x0 - eps, t = 0 noise" in text
    assert "DiT or SiT; its contents don't tell" in text and "heads unknown, say with --num-heads" in text
    assert "one set of weights, not named" in text


def test_inspect_knows_our_folders(capsys):
    assert main(["inspect", str(Path(__file__).parents[1] / "distill" / "assets" / "teacher")]) == 0
    text = capsys.readouterr().out
    assert "dar-distill folder" in text and "depth 16, width 96" in text


def test_weights_that_are_not_finite_are_refused(tmp_path, capsys):
    state = official_state(4)
    state["blocks.0.mlp.fc1.weight"][3, 3] = float("nan")
    path, target = saved(tmp_path, state), str(tmp_path / "model")
    line = refused(capsys, "convert", path, target, "--format", "sit", "--num-heads", "2")
    assert "1 of 896 values of blocks.0.mlp.fc1.weight are not finite" in line
    model = load_pretrained(path, format="sit", num_heads=2)
    model.save_pretrained(tmp_path / "plain")
    line = refused(capsys, "retrofit", str(tmp_path / "plain"), target)
    assert "blocks.0.mlp.fc1.weight are not finite" in line and not (tmp_path / "model").exists()


def test_class_names_of_a_pipeline_come_along(tmp_path, capsys):
    """diffusers' DiT keeps them in model_index.json; those without a name are called by their number."""
    source = tmp_path / "pipeline"
    source.mkdir()
    for text, expected in (
        ('{"id2label": {"0": "a cat", "2": "a dog"}}', ["a cat", "class 1", "a dog", "class 3", "class 4"]),
        ('{"_class_name": "DiTPipeline"}', None),
    ):
        (source / "model_index.json").write_text(text)
        assert classes_beside(source, 5).group_names() == expected
    (source / "model_index.json").write_text('{"id2label": ["a"]}')
    with pytest.raises(UserError, match=r"model_index\.json is damaged"):
        classes_beside(source, 5)
