"""Pictures of anybody: measured as they are, written for others, and the folders that they lie in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dar import SiT
from distill.cli import main
from distill.conditions import ClassLabels
from distill.config import DataConfig, EvalConfig, TeacherConfig
from distill.data import load_dataset
from distill.data.base import noise_of
from distill.data.configured import configured_dataset
from distill.errors import UserError
from distill.metrics import ReferenceStatistics
from distill.models import load_model
from distill.render import to_uint8
from distill.sampling import Sampler, teacher_sampler
from distill.verbs.evaluate import evaluate_images
from distill.verbs.sample import sample
from distill.verbs.sample_npz import sample_npz
from tests.test_cli import QUICK, refused

NOISE = noise_of(torch.Generator())


def write_pictures(folder: Path, num: int = 8, size: tuple[int, int] = (24, 24), seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(num):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def sampler_of(model, path: str = "") -> Sampler:
    sampler = teacher_sampler("teacher, 2 steps", model, TeacherConfig(), 2)
    sampler.path = path
    return sampler


class TestEvaluateImages:
    def test_of_a_folder_against_itself(self, tmp_path: Path) -> None:
        folder = write_pictures(tmp_path / "a", size=(24, 16))
        config = EvalConfig(data=DataConfig("pictures", str(folder)), bootstrap=2)
        found = evaluate_images(folder, config, output=tmp_path / "out")
        assert found.measured.num_images == 8
        for name in ("spectral_distance_data", "gradient_distance_data"):
            assert found.measured.measures[name].value == pytest.approx(0, abs=1e-6)
        assert ReferenceStatistics.load(tmp_path / "out" / "measures.npz").image_shape == (3, 24, 16)

    def test_an_npz_against_a_folder_by_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = write_pictures(tmp_path / "a")
        pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(folder.iterdir())])
        np.savez(tmp_path / "b.npz", arr_0=255 - pixels)
        argv = ["--images", str(tmp_path / "b.npz"), "--data", str(folder), "--output", str(tmp_path / "out")]
        assert main(["evaluate", *argv]) == 0
        out = capsys.readouterr().out
        assert "(pictures), 8 images\n" in out and "Spectral distance to data" in out
        assert json.loads((tmp_path / "out" / "measures.json").read_text())["num_images"] == 8

    def test_what_it_needs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder, output = write_pictures(tmp_path / "a"), str(tmp_path / "out")
        assert "give --data" in refused(capsys, "evaluate", "--images", str(folder), "--output", output)
        assert "either a model" in refused(capsys, "evaluate", "--output", output)
        other = write_pictures(tmp_path / "b", size=(16, 16))
        line = refused(capsys, "evaluate", "--images", str(folder), "--data", str(other), "--output", output)
        assert f"{other} has images [3, 16, 16]; those to be measured are [3, 24, 24]" in line


def test_statistics_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "a" / "cat", num=5)
    write_pictures(tmp_path / "a" / "dog", num=9, seed=1)
    file = tmp_path / "made.npz"
    argv = ["statistics", str(tmp_path / "a"), "--num-images", "8", "--source", "pets", "--output", str(file)]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "pets, 8 images" in captured.out and "features are left out" in captured.err
    made = ReferenceStatistics.load(file)
    assert made.labels.tolist() == [0] * 4 + [1] * 4 and not made.has_features
    assert "does not read" in refused(capsys, *argv, "--extractor", "embedded")


class TestNpz:
    def test_it_holds_what_sample_draws(self, tmp_path: Path, tiny_model) -> None:
        sampler = sampler_of(tiny_model)
        file = sample_npz(sampler, tmp_path / "s.npz", 7, batch_size=3)
        with np.load(file) as found:
            images, labels = found["arr_0"], found["arr_1"]
        drawn = sample(sampler, 7).images
        assert images.shape == (7, 8, 8, 3) and labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
        np.testing.assert_array_equal(images[..., 0], to_uint8(drawn)[:, 0].numpy())
        assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]

    def test_it_goes_on_where_it_was_cut_off(self, tmp_path: Path, tiny_model) -> None:
        whole = sample_npz(sampler_of(tiny_model), tmp_path / "whole.npz", 7, batch_size=2)
        calls = 0
        sampler = sampler_of(tiny_model)
        draw = sampler.draw

        def cut_off(noise, y):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return draw(noise, y)

        sampler.draw = cut_off
        with pytest.raises(KeyboardInterrupt):
            sample_npz(sampler, tmp_path / "s.npz", 7, batch_size=2)
        assert not (tmp_path / "s.npz").exists()
        with pytest.raises(UserError, match="4 images were drawn with seed = 1; now it is 2"):
            sample_npz(sampler, tmp_path / "s.npz", 7, batch_size=2, seed=2)
        bias = sampler.model.x_embedder.proj.bias.data
        kept = bias.clone()
        bias += 1e-3
        with pytest.raises(UserError, match="4 images were drawn with weights = "):
            sample_npz(sampler, tmp_path / "s.npz", 7, batch_size=2)
        bias.copy_(kept)
        sample_npz(sampler, tmp_path / "s.npz", 7, batch_size=2)
        assert calls == 5  # two batches before, two after
        with np.load(whole) as a, np.load(tmp_path / "s.npz") as b:
            np.testing.assert_array_equal(a["arr_0"], b["arr_0"])
        with pytest.raises(UserError, match="exists; choose another"):
            sample_npz(sampler, tmp_path / "s.npz", 7)


class TestFolders:
    def test_files_that_are_no_images_are_counted_and_hidden_ones_are_no_class(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_pictures(tmp_path / "cat", num=2)
        write_pictures(tmp_path / ".ipynb_checkpoints", num=2)
        write_pictures(tmp_path / "__MACOSX", num=2)
        for name in ("a.gif", "b.gif", "._0.png", "notes"):
            (tmp_path / "cat" / name).write_bytes(b"")
        data = load_dataset("images", tmp_path)
        assert len(data) == 2 and str(data.condition) == "1 classes"
        assert "left out: 2 .gif, 1 hidden, 1 without an extension" in caplog.text

    def test_a_broken_link_is_named(self, tmp_path: Path) -> None:
        write_pictures(tmp_path / "cat", num=2)
        (tmp_path / "cat" / "x.png").symlink_to(tmp_path / "nowhere.png")
        with pytest.raises(ValueError, match=r"x\.png is no file"):
            load_dataset("images", tmp_path)

    @pytest.mark.parametrize("link", ["cat/again", "dog"])
    def test_a_loop_of_links_is_named(self, tmp_path: Path, link: str) -> None:
        write_pictures(tmp_path / "set" / "cat", num=2)
        (tmp_path / "set" / link).symlink_to(tmp_path if link == "dog" else tmp_path / "set" / "cat")
        with pytest.raises(ValueError, match=f"{link} is a link to a folder that it lies in"):
            load_dataset("images", tmp_path / "set")

    def test_other_links_are_classes_or_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_pictures(tmp_path / "elsewhere", num=3)
        write_pictures(tmp_path / "set" / "cat", num=2)
        (tmp_path / "set" / "dog").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
        assert load_dataset("images", tmp_path / "set").labels.tolist() == [0, 0, 1, 1, 1]
        assert "left out: 1 links to folders" in caplog.text

    @pytest.mark.parametrize("name", ["x.png", "cat/x.png"])
    def test_a_folder_named_like_an_image_is_refused(self, tmp_path: Path, name: str) -> None:
        write_pictures(tmp_path / "cat", num=2)
        write_pictures(tmp_path / name, num=2)
        with pytest.raises(ValueError, match=r"x\.png is a folder and named like an image"):
            load_dataset("images", tmp_path)

    def test_pictures_stand_upright(self, tmp_path: Path) -> None:
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[0] = 255
        (tmp_path / "cat").mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        Image.fromarray(pixels).save(tmp_path / "cat" / "a.png", exif=exif)
        images, _ = load_dataset("images", tmp_path).batch(torch.tensor([0]), NOISE)
        assert (images[0, :, :, -1] == 1).all() and (images[0, :, :, :-1] == -1).all()


def test_class_names_go_from_folders_to_the_student(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own colour pictures, offline, from the folder to the page."""
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # an untrained teacher fails it, as it should
    for name in ("cat", "dog"):
        write_pictures(tmp_path / "pets" / name, num=6)
    config = tmp_path / "train.yaml"
    config.write_text(
        f"output: {tmp_path / 'training'}\n"
        "model: {input_size: 24, patch_size: 4, in_channels: 3, hidden_size: 16, depth: 1, num_heads: 2, "
        "num_classes: 3, routing: {chunk_size: 2}}\n"
        f"data: {{name: images, path: {tmp_path / 'pets'}}}\n"
        "train: {steps: 1, batch_size: 4}\ngrid_steps: 2\n"
    )
    assert main(["train", str(config)]) == 0
    assert (
        "1 of the model's 3 classes have no sample, so they are not drawn, distilled or measured: 2"
        in capsys.readouterr().err
    )
    teacher = tmp_path / "training" / "teacher"
    assert json.loads((teacher / "classes.json").read_text()) == ["cat", "dog", None]
    run = ["run", "quickstart", f"output={tmp_path / 'run'}", f"teacher.path={teacher}", *QUICK]
    run += ["objective.fake_score.warmup_updates=0"]
    data = ["evaluate.data.name=images", f"evaluate.data.path={tmp_path / 'pets'}"]
    assert main([*run, *data]) == 0
    err = capsys.readouterr().err
    assert "Fashion" not in err and err.count("LPIPS is left out") == 1
    assert json.loads((tmp_path / "run" / "student" / "classes.json").read_text()) == ["cat", "dog", None]
    assert main(["sample", str(tmp_path / "run"), "--output", str(tmp_path / "drawn"), "--num-images", "3"]) == 0
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == ["000000_cat.png", "000001_dog.png", "000002_cat.png", "grid.png"]
    npz = ["sample", str(tmp_path / "run"), "--npz", str(tmp_path / "dogs.npz"), "--num-images", "2"]
    assert main([*npz, "--classes", "dog"]) == 0
    assert np.load(tmp_path / "dogs.npz")["arr_1"].tolist() == [1, 1]
    assert "class 2 was never trained" in refused(capsys, *npz[:3], str(tmp_path / "none.npz"), "--classes", "2")
    assert "Spectral distance to data" in (tmp_path / "run" / "report" / "report.html").read_text()
    (teacher / "classes.json").write_text("[1, 2]")
    (teacher / "checksums.json").unlink()  # as one has to who edits a file
    assert "must hold a list of names" in refused(capsys, *run, f"output={tmp_path / 'again'}")
    (teacher / "classes.json").write_text('["cat"]')
    assert "names 1 classes; the model has 3" in refused(
        capsys, "sample", str(teacher), "--output", str(tmp_path / "no")
    )


@pytest.mark.usefixtures("small_teacher")
def test_a_run_that_only_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [*QUICK, "evaluate.num_images=0", "objective.fake_score.warmup_updates=0"]
    assert main(["run", "quickstart", f"output={tmp_path / 'run'}", *few]) == 0
    assert "report:" not in capsys.readouterr().out
    assert (tmp_path / "run" / "student").is_dir() and not (tmp_path / "run" / "report" / "report.html").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_model: SiT) -> None:
    with torch.no_grad():
        tiny_model.final_layer.linear.weight[0, 0] = float("nan")
    tiny_model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"1 of \d+ values of final_layer\.linear\.weight are not finite"):
        load_model(tmp_path / "model")


class TestSize:
    def test_photographs_of_any_size_are_resized_and_cropped(self, tmp_path: Path) -> None:
        """A smooth ramp stays the ramp, at the middle, whatever the scale."""
        (tmp_path / "cat").mkdir()
        for i, (width, height) in enumerate([(96, 64), (200, 128), (64, 80)]):
            ramp = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
            Image.fromarray(ramp.round().astype(np.uint8)).save(tmp_path / "cat" / f"{i}.png")
        with pytest.raises(ValueError, match=r"all must be alike: give data\.size"):
            load_dataset("images", tmp_path)
        data = configured_dataset(DataConfig("images", str(tmp_path), size=32))
        images, _ = data.batch(torch.arange(3), NOISE)
        assert images.shape == (3, 3, 32, 32)
        expected = (np.arange(32) + 0.5) / 32 * 2 - 1
        for image in images[:2]:
            np.testing.assert_allclose(image[0, :, 5], expected, atol=0.03)

    def test_it_is_for_files(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"data\.size is for data\.name = crops or images or pictures; npz is read"
        ):
            load_dataset("npz", tmp_path, size=8)

    def test_small_images_are_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_pictures(tmp_path / "cat", num=3)
        assert load_dataset("images", tmp_path, size=48).sample_shape == (3, 48, 48)
        assert "3 images are smaller than data.size = 48" in caplog.text


def test_flips_mirror_half_of_the_images(tmp_path: Path) -> None:
    write_pictures(tmp_path / "cat", num=2)
    plain = load_dataset("images", tmp_path)
    flipped = configured_dataset(DataConfig("images", str(tmp_path), flip=True))
    indices = torch.zeros(200, dtype=torch.int64)
    images, _ = flipped.batch(indices, noise_of(torch.Generator().manual_seed(0)))
    (image,), _ = plain.batch(indices[:1], NOISE)
    as_is = (images == image).flatten(1).all(1)
    assert ((images == image.flip(-1)).flatten(1).all(1) != as_is).all() and 70 < as_is.sum() < 130


@pytest.mark.parametrize(("train", "test"), [("train", "val"), ("training", "validation"), ("train", "test")])
def test_splits_by_the_names_that_people_give_them(tmp_path: Path, train: str, test: str) -> None:
    write_pictures(tmp_path / train / "cat", num=3)
    write_pictures(tmp_path / test / "cat", num=2)
    assert [len(load_dataset("images", tmp_path, split)) for split in ("train", "test")] == [3, 2]


def test_classes_are_in_the_order_in_which_people_count(tmp_path: Path) -> None:
    for name in ("10", "2", "1", "b2", "b10"):
        write_pictures(tmp_path / name, num=1)
    condition = load_dataset("images", tmp_path).condition
    assert isinstance(condition, ClassLabels) and condition.class_names == ("1", "2", "10", "b2", "b10")
