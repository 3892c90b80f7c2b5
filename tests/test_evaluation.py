"""What is measured is what a person would see, and what is said of it is so."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dar import RoutingConfig, SiT, SiTConfig
from distill import report
from distill.assets import asset
from distill.config import DataConfig, EvalConfig, TeacherConfig
from distill.errors import UserError
from distill.evaluation import results
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.evaluation.measured import Measured
from distill.latents.decoding import PIXELS
from distill.metrics import Features, Interval, data_values, load_extractor, reference_from_images
from distill.metrics.classifier import Classifier, ClassifierConfig
from distill.report import write_report
from distill.sampling.drawn import DrawnImages
from distill.sampling.samplers import Sampler, few_step_sampler, load_sampler, teacher_sampler
from distill.verbs.evaluate import evaluate
from tests.conftest import perturbed, tiny_config

CPU = torch.device("cpu")
GREY = (1, 28, 28)


def test_images_are_measured_within_their_range(tiny_model: SiT) -> None:
    def louder(noise: Tensor, y: Tensor) -> Tensor:
        return 2 * noise[0]

    sampler = Sampler("loud", "teacher", "twice the noise", tiny_model, louder, 1, 1, 1, torch.empty(0))
    (drawing,) = draw([(sampler, 6)], EvalConfig(), PIXELS)
    images = drawing.images
    assert images.min() == -1 and images.max() == 1
    assert ((images > -1) & (images < 1)).any()


def test_the_time_of_a_drawing_is_that_of_its_batches() -> None:
    drawn = DrawnImages(None, {}, (5, 1), np.float32)
    for rows, seconds in ((3, 0.5), (2, 0.25)):
        drawn.append(np.ones((rows, 1), np.float32), seconds)
    assert (drawn.done, drawn.seconds) == (5, 0.75) and drawn.array.all()


def test_an_evaluation_that_was_cut_off_goes_on(tiny_model: SiT, tmp_path: Path) -> None:
    sampler = few_step_sampler("student, 2 steps", tiny_model, torch.tensor([1.0, 0.5]))
    config = EvalConfig(num_images=12, batch_size=3, bootstrap=4)
    whole = evaluate(sampler, config)
    rows: list[int] = []

    def cut_off(noise: Tensor, y: Tensor) -> Tensor:
        rows.append(len(y))
        if sum(rows) == 9:
            raise KeyboardInterrupt
        return sampler.draw(noise, y)

    with pytest.raises(KeyboardInterrupt):
        evaluate(replace(sampler, draw=cut_off), config, output=tmp_path / "out")
    with pytest.raises(UserError, match=r"6 images were drawn with seed = 1; now it is 2"):
        evaluate(replace(sampler, draw=cut_off), replace(config, seed=2), output=tmp_path / "out")
    parts = evaluate(replace(sampler, draw=cut_off), config, output=tmp_path / "out")
    assert rows == [3, 3, 3, 3, 3]
    assert whole is not None and parts is not None
    assert whole.measured.measures and str(parts.measured.measures) == str(whole.measured.measures)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["measures.json", "measures.npz"]
    with pytest.raises(UserError, match="is not empty"):
        evaluate(sampler, config, output=tmp_path / "out")


@pytest.fixture
def stored_teacher(tmp_path: Path) -> Path:
    """The shipped teacher's statistics and measures, as files of one's own."""
    for name in ("teacher.npz", "teacher.json"):
        shutil.copyfile(asset(name), tmp_path / name)
    return tmp_path / "teacher.npz"


class OtherDistance:
    name = "LPIPS (AlexNet)"

    def distance(self, a: Tensor, b: Tensor, batch_size: int = 200) -> Tensor:
        return (a - b).flatten(1).norm(dim=1)


@pytest.mark.parametrize("other", [False, True])
def test_diversity_of_another_perceptual_distance_is_left_out(
    other: bool, stored_teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other:
        monkeypatch.setattr("distill.evaluation.evaluator.load_perceptual", lambda *_, **__: OtherDistance())
    teacher = load_sampler("embedded", TeacherConfig())
    evaluator = Evaluator(EvalConfig(teacher_reference=str(stored_teacher)), CPU, GREY, "embedded")
    evaluator.use_teacher_reference(teacher, "embedded")
    assert evaluator.measured_teacher is not None
    assert ("lpips_diversity" in data_values(evaluator.data)) == (not other)
    assert ("lpips_diversity" in evaluator.measured_teacher.measures) == (not other)
    assert sum("diversity of" in note and "is left out" in note for note in evaluator.notes) == 2 * other


def entry_of(sampler: Sampler, measured: Measured) -> results.Entry:
    column = report.Sampler(sampler.name, sampler.role, np.zeros((1, 1, 28, 28)), sampler.num_steps, 1, 1.0)
    return results.Entry(column, measured, (torch.empty(0), torch.empty(0)), torch.empty(0), torch.empty(0))


def test_stored_limits_of_recall_are_not_shown(stored_teacher: Path) -> None:
    teacher = load_sampler("embedded", TeacherConfig())
    measured = Measured.load(stored_teacher.with_suffix(".json"))
    cells = results.table([entry_of(teacher, measured)], {}, {})
    recall, precision = cells["recall"][teacher.name], cells["precision"][teacher.name]
    assert recall is not None and recall.low is None and recall.value == measured.measures["recall"].value
    assert precision is not None and precision.low == measured.measures["precision"].low


def test_measures_without_limits_are_plain_json(tmp_path: Path) -> None:
    measures = {"recall": Interval(0.5, math.nan, math.nan), "precision": Interval(0.9, 0.8, 0.95)}
    stored = Measured("a", "b", 20, 4, 4, 1.0, measures).to_bytes()
    (tmp_path / "measures.json").write_bytes(stored)
    assert b"NaN" not in stored
    again = Measured.load(tmp_path / "measures.json").measures
    assert again["precision"] == measures["precision"]
    assert again["recall"].value == 0.5 and math.isnan(again["recall"].low) and math.isnan(again["recall"].high)


def test_tiles_name_the_student_and_are_left_out_for_several(stored_teacher: Path) -> None:
    teacher = load_sampler("embedded", TeacherConfig())
    measured = Measured.load(stored_teacher.with_suffix(".json"))
    one, two = (few_step_sampler(name, teacher.model, torch.ones(1)) for name in ("one", "two"))
    entries = [entry_of(sampler, measured) for sampler in (teacher, one, two)]
    tiles = results.headline(entries[:2], {"high_frequency_ratio": 0.08})
    assert [label for label, _, _ in tiles] == ["speed", "Fréchet distance", "class agreement", "detail"]
    assert all("one" in comment for _, _, comment in tiles)
    value, comment = tiles[-1][1:]
    assert value == "+4%" and "share of the power" in comment
    assert results.headline(entries, {"high_frequency_ratio": 0.08}) == []


def test_the_note_names_the_classifier_that_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    Classifier(ClassifierConfig(image_size=32, in_channels=3, feature_dim=6)).save_pretrained(tmp_path / "own", "")
    extractor = load_extractor("embedded", tmp_path / "own")
    images = torch.rand(20, 3, 32, 32) * 2 - 1
    reference_from_images(images, torch.arange(20) % 10, extractor, "noise").save(tmp_path / "data.npz")
    config = EvalConfig(
        extractor_path=str(tmp_path / "own"), extractor="embedded", reference=str(tmp_path / "data.npz")
    )
    (note,) = [note for note in Evaluator(config, CPU, (3, 32, 32)).notes if note.startswith("Fréchet")]
    assert f"6 features of the classifier in {tmp_path / 'own'}" in note
    (note,) = [note for note in Evaluator(EvalConfig(), CPU, GREY, "embedded").notes if note.startswith("Fréchet")]
    assert "64 features of a small Fashion-MNIST classifier" in note


class Colours:
    """An extractor that reads images of any shape, as Inception does."""

    name, version, feature_dim = "colours", "1", 6

    def reads(self, image_shape: tuple[int, ...]) -> bool:
        return True

    def extract(self, images: Tensor, batch_size: int = 250) -> Features:
        return Features(torch.cat([images.mean((-2, -1)), images.std((-2, -1))], dim=1), None)


def test_photographs_are_measured_without_a_perceptual_distance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("distill.evaluation.evaluator.load_extractor", lambda *_, **__: Colours())
    torch.manual_seed(0)
    model = SiT(SiTConfig(64, 16, 3, 16, 1, 2, num_classes=10, routing=RoutingConfig(kind="residual")))
    images = torch.rand(20, 3, 64, 64) * 2 - 1
    reference_from_images(images, torch.arange(20) % 10, Colours(), "noise").save(tmp_path / "data.npz")
    config = EvalConfig(num_images=20, reference=str(tmp_path / "data.npz"), teacher_reference=None, bootstrap=4)
    evaluator = Evaluator(config, CPU, model.sample_shape)
    assert any("LPIPS is left out: alexnet" in note for note in evaluator.notes)
    sampler = teacher_sampler("teacher, 1 steps", model, TeacherConfig(), 1)
    (drawing,) = draw([(sampler, 20)], config, evaluator.decoder)
    measured = evaluator.measure(drawing)
    assert "frechet" in measured.measures and "lpips_diversity" not in measured.measures


def test_without_data_and_weights_the_teacher_is_the_yardstick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = perturbed(SiT(tiny_config(input_size=24, patch_size=4, in_channels=3)))
    assert isinstance(model, SiT)
    evaluator = Evaluator(EvalConfig(num_images=12, bootstrap=4), CPU, model.sample_shape, "my/teacher")
    said = " ".join(evaluator.notes)
    assert "Fashion" not in said and "weights-inception" in said and "alexnet" in said and "yardstick" in said
    slow = teacher_sampler("teacher, 3 steps", model, TeacherConfig(), 3)
    evaluator.use_teacher_reference(slow, "my/teacher")
    student = few_step_sampler("student, 2 steps", model, torch.tensor([1.0, 0.5]))
    drawings = results.draw_for_report(evaluator, [slow, student], evaluator.config, evaluator.decoder, 2)
    entries = results.measured_entries(evaluator, drawings, 2)
    assert "spectral_distance_teacher" in entries[1].measured.measures
    assert not {"frechet", "kid", "spectral_distance_data"} & set(entries[1].measured.measures)
    page = results.page("a", "b", entries, evaluator, slow.condition, seeds={})
    assert page.yardstick == "teacher, 3 steps"
    assert "the closer to teacher, 3 steps the better" in write_report(page, tmp_path / "page").read_text()


def test_the_data_of_a_data_set_are_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(20) % 3)
    config = EvalConfig(data=DataConfig("npz", str(tmp_path / "data.npz")))
    evaluator = Evaluator(config, CPU, (3, 24, 24), "my/teacher")
    assert evaluator.data is not None and evaluator.data.num_images == 20
    assert not any("yardstick" in note for note in evaluator.notes)
    with pytest.raises(UserError, match=r"has images \[3, 24, 24\]; those to be measured are \[3, 16, 16\]"):
        Evaluator(config, CPU, (3, 16, 16))


def test_the_shipped_references_are_of_the_shipped_teacher_only() -> None:
    for path in ("my/teacher", None):
        evaluator = Evaluator(EvalConfig(), CPU, GREY, path)
        evaluator.use_teacher_statistics(path)
        assert evaluator.data is None and evaluator.teacher is None
    evaluator = Evaluator(EvalConfig(), CPU, GREY, "embedded")
    evaluator.use_teacher_statistics("embedded")
    assert evaluator.data is not None and evaluator.teacher is not None


def test_statistics_of_others(tmp_path: Path) -> None:
    """ADM's file: Inception's moments, and images."""
    rng = np.random.default_rng(0)
    arrays = {"mu": rng.normal(size=2048), "sigma": np.eye(2048)}
    images = rng.integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "adm.npz", arr_0=images, **arrays)
    reference = Evaluator(EvalConfig(reference=str(tmp_path / "adm.npz")), CPU, (3, 24, 24)).data
    assert reference is not None and reference.has_images and not reference.has_features
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(ValueError, match=r"mu and sigma have shapes \(5,\), \(5, 5\); Inception has 2048"):
        Evaluator(EvalConfig(reference=str(tmp_path / "wrong.npz")), CPU, (3, 24, 24))
