"""Stock transformers from end to end: distilled by adapters with attached routing, resumed, drawn, measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import distill
from distill.cli import main
from distill.data.latents import listing
from distill.latents.space import LatentSpace
from distill.models import load_model
from tests.stock_folders import PROMPTS, SHAPES, routed_teacher

ROLES = {"trainable": "lora", "lora_rank": 2}


def config(teacher: Path, output: Path, steps: int, **changes: Any) -> dict[str, Any]:
    return {
        "output": str(output),
        "teacher": {"path": str(teacher), "steps": 2, "cfg_scale": 2.0},
        "student": {"steps": 2, "t_list": [1.0, 0.6], "ema_decay": 0.5},
        "objective": {"name": "dmd", "fake_score": {"updates": 1, "warmup_updates": 1}},
        "roles": ROLES,
        "train": {"steps": steps, "batch_size": 2, "log_every": 1, "grid_every": 2, "save_every": 2},
        "watch": {"num_images": 8, "teacher_steps": 1},
        "evaluate": {"num_images": 12, "offline": True},
        **changes,
    }


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.parametrize("name", ["sd3", "qwen_image", "flux", "flux2"])
def test_distilled_by_adapters_and_resumed_to_the_bit(name: str, tmp_path: Path) -> None:
    teacher, output = routed_teacher(name, tmp_path), tmp_path / "whole"
    unmeasured = {"evaluate": {"num_images": 0}}
    whole = distill.run(config(teacher, output, 4, **({} if name == "sd3" else unmeasured)))
    assert whole is not None and (whole.report is not None) == (name == "sd3")
    saved = tensors(whole.student)
    assert saved.keys() == {"adapter_model.safetensors", "routing.safetensors"}
    distill.run(config(teacher, output, 4, **unmeasured), from_step=2)
    assert tensors(whole.student) == saved

    student: Any = load_model(whole.student)
    start: Any = load_model(teacher)
    assert student.sample_shape == SHAPES[name] and str(student.condition) == "3 prompts"
    x_t, t, y = torch.randn(3, *SHAPES[name]), torch.full((3,), 0.6), student.condition.balanced(3)
    assert not torch.equal(student(x_t, t, y), start(x_t, t, y))
    assert any(bool(p.any()) for n, p in student.named_parameters() if "lora_B" in n)


def test_whole_roles_gradient_checkpointing_sample_and_evaluate(tmp_path: Path, capsys: Any) -> None:
    teacher = routed_teacher("sd3", tmp_path, sources="differences")
    train = {"steps": 2, "batch_size": 2, "log_every": 1, "grid_every": 9, "save_every": 9}
    losses = []
    for checkpointing in (False, True):
        output = tmp_path / f"run_{checkpointing}"
        changes = {"roles": {"trainable": "all"}, "train": {**train, "gradient_checkpointing": checkpointing}}
        distill.run(config(teacher, output, 2, **changes, evaluate={"num_images": 0}))
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        losses.append([record["fake_score/loss"] for record in records])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    run = str(tmp_path / "run_True")
    assert (tmp_path / "run_True" / "student" / "transformer" / "config.json").is_file()
    assert main(["sample", run, "--output", str(tmp_path / "drawn"), "--num-images", "3", "--classes", "a cat,1"]) == 0
    assert (tmp_path / "drawn" / "grid.png").is_file()
    assert main(["plan", str(tmp_path / "run_True" / "config.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "SD3Transformer2DModel, samples 4 x 8 x 8, prompts of 5 tokens, routing dar" in " ".join(printed.split())
    assert main(["evaluate", run, "--output", str(tmp_path / "measured"), "--num-images", "12"]) == 0


@pytest.mark.parametrize("trainable", ["routing", "lora"])
def test_fine_tuned_with_routing_on_captioned_latents(trainable: str, tmp_path: Path) -> None:
    """What DAR adds to a stock transformer is trained by flow matching; the rest of it stays."""
    teacher = routed_teacher("sd3", tmp_path)
    folder = tmp_path / "latents" / "vae-sd"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(12):
        shape = SHAPES["sd3"]
        np.save(folder / f"{i}.npy", np.concatenate([rng.normal(size=shape), np.zeros(shape)]).astype(np.float32))
    (folder / "dataset.json").write_text(listing([(f"{i}.npy", 0) for i in range(12)], LatentSpace()))
    (tmp_path / "latents" / "captions.json").write_text(json.dumps([PROMPTS[i % 3] for i in range(12)]))
    trained = distill.train(
        {
            "output": str(tmp_path / "out"),
            "start": {"path": str(teacher), "trainable": trainable, "lora_rank": 2},
            "data": {"name": "latents", "path": str(tmp_path / "latents"), "prompts": str(tmp_path / "prompts")},
            "train": {"steps": 2, "batch_size": 4, "log_every": 1, "grid_every": 2, "save_every": 2},
        }
    )
    assert trained is not None
    before, after = (dict(load_model(path).named_parameters()) for path in (teacher, trained.teacher))  # type: ignore[attr-defined]
    changed = {name for name, value in before.items() if name in after and not torch.equal(value, after[name])}
    if trainable == "routing":
        assert changed and all(".routing." in name for name in changed)
    else:
        assert any("lora_B" in name and bool(value.any()) for name, value in after.items())
