"""Representation alignment: its losses, what it is aligned with, and trainings with it, which are resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dar import RoutingConfig, SiT
from distill.config import RepaConfig, TrainConfig, build_config
from distill.data import load_dataset
from distill.data.features import FEATURES_FILE, SUMS_FILE, StoredFeatures
from distill.errors import UserError
from distill.files import locked
from distill.metrics.classifier import Classifier, ClassifierConfig
from distill.models import load_model
from distill.objectives.alignment import (
    Aligned,
    Targets,
    alignment_losses,
    self_alignment_losses,
    spatially_normed,
)
from distill.objectives.teacher import TeacherTask
from distill.planning.encoders import encoder_of
from distill.verbs.plan import plan
from distill.verbs.train import train
from tests.conftest import perturbed, tiny_config, without_time
from tests.test_more_objectives import script
from tests.test_resume import flip

SHAPE = tiny_config(depth=4, num_classes=3)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(24) % 3)
    torch.manual_seed(1)
    Classifier(ClassifierConfig(image_size=8, widths=(6, 12), num_classes=3)).save_pretrained(
        tmp_path / "encoder", "a test"
    )
    model = {**vars(SHAPE), "routing": {"kind": "dar", "chunk_size": 2}}
    return {
        "output": str(tmp_path / "run"),
        "model": {name: value for name, value in model.items() if name != "prediction"},
        "data": {"name": "npz", "path": str(tmp_path / "data.npz")},
        "repa": {"encoder": "embedded", "path": str(tmp_path / "encoder"), "block": 2},
        "optim": {"lr": 1e-3},
        "train": {"steps": 3, "batch_size": 4, "accumulation": 2, "log_every": 1, "save_every": 1, "keep": 5},
        "grid_steps": 2,
    }


def task_of(values: dict[str, Any]) -> TeacherTask:
    config = build_config(TrainConfig, values)
    torch.manual_seed(0)
    data = load_dataset("npz", config.data.path)
    return TeacherTask(config, perturbed(SiT(SHAPE)), data, Accelerator(cpu=True))


# --- losses ------------------------------------------------------------------------------------------------------


def test_losses_of_alignment() -> None:
    z = torch.randn(3, 4, 6, dtype=torch.float64)
    assert alignment_losses(7 * z, z).abs().max() < 1e-6 and torch.allclose(alignment_losses(-z, z), torch.tensor(2.0))
    a, b = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    assert float(alignment_losses(a, b)) == pytest.approx((1 - 0.5**0.5) / 2)
    assert float(alignment_losses(a, b * torch.tensor([[1.0], [2.0]]))) == pytest.approx((1 - 0.5**0.5) / 2)
    assert float(self_alignment_losses(a, b)) == pytest.approx(0.5 / 4)
    assert float(self_alignment_losses(a, 4 * a)) == pytest.approx(2.5 / 2)


def test_spatial_norm_leaves_what_places_differ_in() -> None:
    z = torch.randn(2, 9, 5) + 3
    whole = spatially_normed(z, 1.0)
    assert whole.mean(1).abs().max() < 1e-5 and torch.allclose(whole.std(1), torch.ones(2, 5), atol=1e-4)
    part = spatially_normed(z, 0.6)
    assert torch.allclose(part.mean(1), 0.4 * z.mean(1) / z.std(1), atol=1e-4)


@pytest.mark.parametrize("kind", ["residual", "dar", "attnres", "unet_skip", "hyper"])
def test_features_are_those_of_the_pass(kind: str) -> None:
    """What `features` gives, with the velocity of `forward`, and a gradient into the blocks before alone."""
    torch.manual_seed(0)
    model = perturbed(SiT(tiny_config(depth=4, routing=RoutingConfig(kind=kind, chunk_size=2))), std=0.2)
    x_t, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])
    velocity, kept = model.velocity_and_features(x_t, t, y, [1, 3])
    assert torch.equal(velocity, model(x_t, t, y))
    for found, expected in zip(kept, model.features(x_t, t, y, [1, 3]), strict=True):
        torch.testing.assert_close(found, expected)
    kept[0].square().mean().backward()
    assert model.blocks[0].mlp.fc1.weight.grad.abs().max() > 0
    later = model.blocks[2].mlp.fc1.weight.grad
    assert later is None or not later.any()


@pytest.mark.parametrize("projector", ["mlp", "conv"])
def test_projectors_bring_features_to_the_encoders_width(projector: str) -> None:
    model = perturbed(SiT(SHAPE))
    aligned = Aligned(model, RepaConfig(block=2, projector=projector), 12)
    x_t, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([0, 1])
    velocity, projected = aligned(x_t, t, y)
    assert torch.equal(velocity, model(x_t, t, y)) and projected.shape == (2, 4, 12)


# --- targets -----------------------------------------------------------------------------------------------------


def test_an_encoders_map_is_brought_to_the_models_grid(values: dict[str, Any]) -> None:
    data = load_dataset("npz", values["data"]["path"])
    repa = RepaConfig(encoder="embedded", path=values["repa"]["path"])
    x0, _ = data.batch(torch.arange(3), torch.zeros)
    same = Targets(repa, data, 16, torch.device("cpu"))
    half = Targets(repa, data, 4, torch.device("cpu"))
    z = same.of(x0, torch.arange(3))
    encoder = Classifier.from_pretrained(values["repa"]["path"])
    assert z.shape == (3, 16, 12) and same.width == 12
    torch.testing.assert_close(z, encoder.feature_maps(x0)[-1].detach().flatten(2).transpose(1, 2))
    assert half.of(x0, torch.arange(3)).shape == (3, 4, 12)
    torch.testing.assert_close(half.of(x0, torch.arange(3)).mean((0, 1)), z.mean((0, 1)), rtol=0.2, atol=0.05)


class Dino(nn.Module):
    """A tiny model with transformers' interface: the mean of each patch of 14 pixels, after a class token."""

    class Config:
        hidden_size = 3

    config = Config()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, pixels: Tensor) -> Any:
        patches = nn.functional.avg_pool2d(pixels, 14).flatten(2).transpose(1, 2)

        class Output:
            last_hidden_state = torch.cat([torch.full((len(pixels), 1, 3), 9.0), patches], 1)

        return Output()


def test_dinov2_gives_the_tokens_of_patches(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.metrics.features import DinoExtractor

    encoder = DinoExtractor(Dino())
    monkeypatch.setattr("distill.objectives.alignment.load_extractor", lambda *_, **__: encoder)
    data = load_dataset("npz", values["data"]["path"])
    targets = Targets(RepaConfig(), data, 256, torch.device("cpu"))
    z = targets.of(torch.zeros(2, 1, 8, 8), torch.arange(2))
    assert z.shape == (2, 256, 3)
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]  # ImageNet's mean and deviation
    assert z[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


# --- trainings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repa",
    [
        {},
        {"projector": "conv", "spatial_norm": 0.7},
        {"encoder": "self", "path": None, "later_block": 3},
        {"encoder": "stored"},
        {"stop_at": 2},
    ],
    ids=["mlp", "conv", "self", "stored", "stopped"],
)
def test_a_training_is_resumed_and_saved_without_its_projector(
    values: dict[str, Any], tmp_path: Path, repa: dict[str, Any]
) -> None:
    values["repa"] |= repa
    if repa.get("encoder") == "stored":
        folder = str(tmp_path / "features")
        made = [str(tmp_path / "data.npz"), folder, "--encoder", "embedded", "--path", str(tmp_path / "encoder")]
        assert script("cache_features").main([*made, "--batch-size", "7"]) == 0
        values["repa"]["path"] = folder
    done = train(values)
    assert done is not None
    log = without_time(done.folder)
    train(values, from_step=1)
    assert without_time(done.folder) == log and all(record["teacher/alignment"] > 0 for record in log)
    model = load_model(done.teacher)
    assert isinstance(model, SiT) and set(model.state_dict()) == set(SiT(SHAPE).state_dict())


def test_stored_features_are_the_encoders(values: dict[str, Any], tmp_path: Path, capsys, caplog) -> None:
    made = script("cache_features")
    arguments = [str(tmp_path / "data.npz"), str(tmp_path / "f"), "--encoder", "embedded", "--path"]
    arguments += [str(tmp_path / "encoder"), "--batch-size", "7"]
    assert made.main(arguments) == 0
    data = load_dataset("npz", tmp_path / "data.npz")
    stored = StoredFeatures(tmp_path / "f", 24)
    live = Targets(RepaConfig(encoder="embedded", path=values["repa"]["path"]), data, 16, torch.device("cpu"))
    chosen = torch.tensor([3, 23, 0])
    x0, _ = data.batch(chosen, torch.zeros)
    torch.testing.assert_close(stored.rows(chosen), live.of(x0, chosen), rtol=1e-3, atol=1e-3)
    index = json.loads((tmp_path / "f" / "features.json").read_text())
    (tmp_path / "f" / "features.json").write_text(json.dumps({**index, "done": 14}))
    with pytest.raises(UserError, match="holds 14 of 24 features"):
        StoredFeatures(tmp_path / "f", 24)
    assert made.main(arguments) == 0
    assert torch.equal(StoredFeatures(tmp_path / "f", 24).rows(chosen), stored.rows(chosen))
    with locked(tmp_path / "f"):
        assert made.main(arguments) == 2 and "is being written by process" in capsys.readouterr().err
    flip(tmp_path / "f" / FEATURES_FILE)
    damaged = StoredFeatures(tmp_path / "f", 24)
    with pytest.raises(UserError, match=r"features\.npy is not as it was written: row 15 is damaged"):
        damaged.rows(torch.arange(24))
    damaged.rows(torch.arange(15))
    (tmp_path / "f" / SUMS_FILE).unlink()
    with caplog.at_level("INFO", logger="distill"):
        for _ in range(2):
            StoredFeatures(tmp_path / "f", 24).rows(torch.arange(24))
    assert caplog.text.count(f"has no {SUMS_FILE}") == 1
    flip(tmp_path / "f" / FEATURES_FILE)
    (tmp_path / "f" / "features.json").write_text(json.dumps({**index, "done": 14}))
    assert made.main(arguments) == 0  # begun by an earlier version
    StoredFeatures(tmp_path / "f", 24).rows(torch.arange(24))
    with pytest.raises(UserError, match="holds features of 24 samples; the data have 25"):
        StoredFeatures(tmp_path / "f", 25)
    assert made.main([*arguments[:2], "--encoder", "embedded", "--size", "8"]) == 2
    assert capsys.readouterr().err.strip()


def test_alignment_changes_the_early_blocks_alone(values: dict[str, Any]) -> None:
    """Its gradient reaches the blocks before the features, and the projector."""
    plain, aligned = task_of({**values, "repa": None}), task_of(values)
    for task in (plain, aligned):
        x0, eps, t, y, *more = task._draw(0)
        task._loss(x0, eps, t, y, *more)[0].backward()
    before = dict(plain.learner.module.named_parameters())
    after = dict(aligned.learner.module.backbone.named_parameters())
    early, late = "blocks.1.mlp.fc1.weight", "blocks.3.mlp.fc1.weight"
    assert not torch.allclose(before[early].grad, after[early].grad)
    torch.testing.assert_close(before[late].grad, after[late].grad)
    assert all(p.grad is not None for p in aligned.learner.module.projector.parameters())


def test_nothing_is_aligned_from_stop_at_on(values: dict[str, Any]) -> None:
    task = task_of({**values, "repa": {**values["repa"], "stop_at": 2}})
    assert task._draw(1)[-1].tolist() == [0.5] * 4 and task._draw(2)[-1].tolist() == [0.0] * 4


def test_the_average_of_the_model_itself_is_the_one_that_moves(values: dict[str, Any]) -> None:
    task = task_of({**values, "repa": {"encoder": "self", "block": 1, "later_block": 3, "less_noise": 0.0}})
    for step in range(2):
        task.update(step)
    x0, eps, t, y, z, _ = task._draw(5)
    x_t = (1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * eps
    torch.testing.assert_close(z, task.averaged_model.features(x_t, t, y, [3])[0].detach())


def test_the_average_sees_less_noise(values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of({**values, "repa": {"encoder": "self", "block": 1, "later_block": 3, "less_noise": 0.3}})
    seen: list[Tensor] = []
    assert task.alignment is not None
    average = task.alignment._average
    features = average.features

    def noted(x_t: Tensor, t: Tensor, y: Any, blocks: list[int]) -> list[Tensor]:
        seen.append(t)
        return features(x_t, t, y, blocks)

    monkeypatch.setattr(average, "features", noted)
    less = torch.cat([task._draw(step)[2] - seen[step] for step in range(5)])
    assert less.min() >= 0 and less.max() <= 0.3 + 1e-6 and less.unique().numel() > 15


@pytest.mark.parametrize(
    ("repa", "message"),
    [
        ({"block": 4}, "repa.block must come before the model's last block, 3; got 4"),
        ({"encoder": "self", "path": None}, "repa.later_block must come before the model's last block, 3; got 20"),
        ({"encoder": "stored", "path": "nowhere"}, "nowhere holds no features"),
        ({"encoder": "dinov2", "path": "/nowhere"}, "repa.encoder = dinov2: "),
        ({"encoder": "embedded", "path": None}, r"repa.encoder = embedded does not read samples of \(1, 8, 8\)"),
    ],
)
def test_what_does_not_fit_is_said(values: dict[str, Any], repa: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        task_of({**values, "repa": {**values["repa"], **repa}})


@pytest.mark.parametrize(
    ("repa", "message"),
    [
        ({"encoder": "clip"}, "repa.encoder must be one of dinov2, embedded, stored, self"),
        ({"encoder": "stored"}, "repa.encoder = stored needs repa.path"),
        ({"spatial_norm": 2}, r"repa.spatial_norm must lie in \[0, 1\]; got 2"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], repa: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(TrainConfig, {**values, "repa": repa})


def test_the_plan_counts_projector_and_encoder(values: dict[str, Any]) -> None:
    plain, aligned = plan({**values, "repa": None}), plan(values)
    projector = Aligned(SiT(SHAPE), RepaConfig(block=2), 12).projector
    assert aligned.roles[0].trainable - plain.roles[0].trainable == sum(p.numel() for p in projector.parameters())
    encoder = Classifier.from_pretrained(values["repa"]["path"])
    (role,) = (role for role in aligned.roles if role.name == "encoder")
    assert (role.weights, role.optimizer, role.trainable) == (
        sum(p.nbytes for p in (*encoder.parameters(), *encoder.buffers())),
        0,
        0,
    )
    images, convolutions = 4, 2 * (8 * 8 * 9 * 1 * 6 + 4 * 4 * 9 * 6 * 12)
    assert aligned.flops - plain.flops == images * convolutions
    (phase,) = (phase for phase in aligned.phases if phase.name == "alignment")
    assert phase.total >= images * 2 * 8 * 8 * 6 * 4  # the maps before and after a norm


def test_the_plan_knows_dinov2_without_its_weights(values: dict[str, Any]) -> None:
    encoder = encoder_of(RepaConfig(), (3, 64, 64))
    assert encoder is not None and encoder.width == 768
    assert sum(p.numel() for p in encoder.model.parameters()) == 86_580_480  # facebook/dinov2-base
    with pytest.raises(UserError, match=r"repa.encoder = dinov2, repa.path = /nowhere: its shape is not there"):
        plan({**values, "repa": {"encoder": "dinov2", "path": "/nowhere"}})
