"""Videos: taken apart into frames in one place, measured, drawn, and a model of them through the whole pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import distill
from distill.cli import main
from distill.conditions import condition_of
from distill.config import EvalConfig, TeacherConfig
from distill.data import load_dataset
from distill.evaluation.differences import answer, differences, resampled
from distill.evaluation.drawing import draw
from distill.evaluation.evaluator import Evaluator
from distill.metrics import (
    MEASURES,
    ReferenceStatistics,
    data_values,
    half_values,
    load_extractor,
    measure,
    reference_from_images,
    rows_of,
)
from distill.metrics.flicker import changes, flicker, motion
from distill.metrics.images import by_parts, stills
from distill.metrics.perceptual import EmbeddedLpips
from distill.metrics.spectrum import bands
from distill.models import load_model
from distill.objectives.watch import Yardstick, varieties
from distill.render import frame_shape, frames, grid_image, save_sample, strip, to_uint8
from distill.report import Report, check_report
from distill.sampling.samplers import teacher_sampler
from tests.stock_folders import routed_teacher
from tests.test_cli import refused
from tests.vae_files import make_wan_vae

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(num: int, channels: int = 1, side: int = 28, seed: int = 0) -> Tensor:
    """Smooth shapes with some grain."""
    coarse = torch.nn.functional.interpolate(normal(num, channels, 7, 7, seed=seed), size=(side, side), mode="bicubic")
    return (0.3 * coarse + 0.05 * normal(num, channels, side, side, seed=seed + 1)).clamp(-1, 1)


def videos(num: int, length: int = 5, seed: int = 0) -> Tensor:
    """(num, 1, length, 28, 28), each of pictures that have nothing to do with each other."""
    return pictures(num * length, seed=seed).unflatten(0, (num, length)).transpose(1, 2)


# taken apart


def test_frames_follow_each_other_and_pictures_stay() -> None:
    samples = normal(2, 3, 4, 5, 6)
    found = frames(samples)
    assert found.shape == (8, 3, 5, 6) and torch.equal(found[5], samples[1, :, 1])
    assert torch.equal(frames(samples[:, :, 0]), samples[:, :, 0])
    assert frame_shape((3, 4, 5, 6)) == frame_shape((3, 5, 6)) == (3, 5, 6)


def test_a_strip_has_six_frames_evenly_spaced() -> None:
    samples = normal(2, 3, 9, 5, 4)
    expected = torch.cat([samples[:, :, number] for number in (0, 2, 3, 5, 6, 8)], dim=-1)
    assert torch.equal(strip(samples), expected)
    assert torch.equal(strip(samples[:, :, :2]), torch.cat([samples[:, :, 0], samples[:, :, 1]], dim=-1))
    assert torch.equal(strip(samples[:, :, 0]), samples[:, :, 0])


def test_a_grid_shows_where_a_video_ends() -> None:
    samples = torch.zeros(4, 1, 2, 16, 16)
    grid = np.array(grid_image(samples, num_rows=2))
    scale = 84 // math.isqrt(16 * 34)
    assert grid.shape == (2 * 16 * scale, 2 * (2 * 16 + 2) * scale)
    assert (grid[:, : 32 * scale] == 128).all() and (grid[:, 32 * scale : 34 * scale] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_video_is_written_without_loss(tmp_path: Path, channels: int) -> None:
    video = normal(channels, 4, 12, 16).clamp(-1, 1)
    path = save_sample(video, tmp_path, "clip")
    assert path == tmp_path / "clip.webp"
    with Image.open(path) as written:
        assert written.n_frames == 4 and written.info["loop"] == 0
        for number in range(4):
            written.seek(number)
            written.load()
            assert written.info["duration"] == 62
            found = np.array(written.convert("RGB" if channels == 3 else "L"))
            expected = to_uint8(video[:, number]).permute(1, 2, 0).squeeze(-1).numpy()
            np.testing.assert_array_equal(found, expected)
    assert save_sample(video[:, 0], tmp_path, "still") == tmp_path / "still.png"
    with pytest.raises(ValueError, match=r"clip.webp is no image that can be read: it moves"):
        load_dataset("pictures", tmp_path)


# measured


def test_a_video_of_one_picture_is_measured_as_that_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and intervals alike: a video counts once, however long it is, and in sets as one picture."""
    monkeypatch.setattr("distill.metrics.features.MIN_PATCHED", 10**9)
    extractor = load_extractor("embedded")
    images, labels, teacher = pictures(24), torch.arange(24) % 3, pictures(24, seed=5)
    reference = reference_from_images(pictures(40, seed=9), torch.zeros(40, dtype=torch.int64), extractor, "pictures")
    settings: dict[str, Any] = {
        "data": reference,
        "teacher": reference,
        "extractor": extractor,
        "lpips": EmbeddedLpips(extractor),  # pyright: ignore[reportArgumentType]
        "num_bootstrap": 20,
    }
    expected = measure(images, labels, paired_to=teacher[:20], **settings)
    repeated = images[:, :, None].expand(-1, -1, 7, -1, -1)
    paired = teacher[:20, :, None].expand(-1, -1, 7, -1, -1)
    found = measure(repeated, labels, paired_to=paired, **settings)
    assert found.keys() - expected.keys() == {"flicker", "motion"} and expected.keys() <= found.keys()
    assert {"frechet", "recall", "lpips_diversity", "class_agreement", "ssim_to_teacher"} <= expected.keys()
    for name, interval in expected.items():
        for limit in ("value", "low", "high"):
            assert getattr(found[name], limit) == pytest.approx(
                getattr(interval, limit), rel=1e-4, abs=1e-5, nan_ok=True
            )


def test_measures_of_pictures_are_means_over_all_frames() -> None:
    samples, labels = videos(8), torch.zeros(8, dtype=torch.int64)
    lpips = EmbeddedLpips(load_extractor("embedded"))  # pyright: ignore[reportArgumentType]
    settings: dict[str, Any] = {"data": None, "extractor": None, "lpips": lpips, "num_bootstrap": 0}
    teacher = videos(8, seed=5)
    found = measure(samples, labels, paired_to=teacher, **settings)
    folded = measure(frames(samples), labels.repeat_interleave(5), paired_to=frames(teacher), **settings)
    assert len(folded) > 15 and "lpips_to_teacher" in folded
    for name, interval in folded.items():
        if name == "lpips_diversity":  # of stills
            continue
        assert found[name].value == pytest.approx(interval.value, rel=1e-4, nan_ok=True), name


def test_parts_of_frames_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, sizes = videos(3), []

    def counted(images: Tensor) -> Tensor:
        sizes.append(len(images))
        return bands(images)

    whole = by_parts(bands, samples)
    torch.testing.assert_close(whole[1], bands(samples[1].transpose(0, 1)).mean(0))
    torch.testing.assert_close(by_parts(counted, samples, at_once=2 * 28 * 28), whole)
    assert sizes == [2, 2, 1] * 3
    missing = by_parts(lambda images: torch.where(images.mean((1, 2, 3)) > 0, 3.0, math.nan), samples)
    assert torch.equal(missing, torch.full((3,), 3.0))  # where a frame has a value


def test_a_still_is_a_frame_of_its_video_by_lot() -> None:
    samples = torch.arange(400.0).view(400, 1, 1, 1, 1) + torch.arange(9.0).view(1, 1, 9, 1, 1) / 10
    found = stills(samples.expand(400, 1, 9, 4, 4))
    assert found.shape == (400, 1, 4, 4) and torch.equal(found.floor(), found.floor()[:, :, :1, :1].expand_as(found))
    assert torch.equal(found[:, 0, 0, 0].floor(), torch.arange(400.0))
    assert len({round(10 * (value % 1)) for value in found[:, 0, 0, 0].tolist()}) == 9
    still = pictures(3)
    assert stills(still).data_ptr() == still.data_ptr()  # no copy of a large set


def test_statistics_of_videos_hold_what_moves_and_those_of_pictures_do_not(tmp_path: Path) -> None:
    labels = torch.zeros(12, dtype=torch.int64)
    moving = reference_from_images(videos(12), labels, None, "videos")
    still = reference_from_images(pictures(12), labels, None, "pictures")
    assert moving.image_shape == still.image_shape == (1, 28, 28)
    for reference, known in ((moving, True), (still, False)):
        reference.save(tmp_path / "reference.npz")
        loaded = ReferenceStatistics.load(tmp_path / "reference.npz")
        assert ("changes" in loaded.tables) == known
        for values in (data_values(loaded), half_values(loaded)):
            assert ("flicker" in values, "motion" in values, "grain" in values) == (known, known, True)
        found = measure(videos(12, seed=3), labels, data=loaded, extractor=None, num_bootstrap=0)
        assert {"flicker", "spectral_distance_data"} <= found.keys()


# in time


def row(samples: Tensor) -> Tensor:
    return changes(samples).double().mean(0)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "skewed"])
def test_noise_has_half_whatever_its_distribution(distribution: str) -> None:
    values = normal(2, 1, 60, 40, 40)
    uniform = torch.special.ndtr(values)
    made = {"normal": 0.3 * values, "uniform": uniform - 0.5, "skewed": 0.2 * -uniform.log()}
    assert flicker(row(made[distribution])) == pytest.approx(0.5, abs=0.005)


def test_what_stands_still_or_goes_one_way_does_not_flicker() -> None:
    still = pictures(2)[:, :, None].expand(-1, -1, 6, -1, -1)
    assert flicker(row(still)) == 0 == motion(row(still))
    rounded = still + normal(*still.shape).clamp(-1, 1) / 600  # below half a step of 8 bits from frame to frame
    assert flicker(row(rounded)) == 0 < motion(row(rounded))
    steps = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]).view(1, 1, 6, 1, 1).expand(1, 1, 6, 28, 28) / 255
    assert flicker(row(0.999 * steps)) == 0 and flicker(row(1.001 * steps)) == 1  # below half a step, and above
    time = torch.arange(6.0).view(1, 1, 6, 1, 1)
    fading = still * (1 - time / 6)
    assert flicker(row(fading)) == 0
    edge = (torch.arange(28.0) > 3 * time).float().expand(1, 1, 6, 28, 28)  # three pixels a frame
    assert flicker(row(edge)) == 0 and motion(row(edge)) == pytest.approx(3 / 28)


def test_what_alternates_has_one() -> None:
    sign = (-1.0) ** torch.arange(7).view(1, 1, 7, 1, 1)
    found = row(0.4 * sign.expand(2, 3, 7, 8, 8))
    assert flicker(found) == pytest.approx(1) and motion(found) == pytest.approx(0.8)


@pytest.mark.parametrize("period", [32, 16, 8, 4, 3])
def test_a_pattern_that_moves_has_one_less_the_cosine_of_half_its_phase(period: int) -> None:
    """One pixel a frame; the phases of pixels are spread by a small slant."""
    x, y, f = torch.arange(96.0), torch.arange(96.0).view(-1, 1), torch.arange(8.0).view(-1, 1, 1)
    moving = torch.sin(2 * math.pi * (x + 0.137 * y - f) / period)[None, None]
    expected = 1 - math.cos(math.pi / period)
    assert flicker(row(moving)) == pytest.approx(expected, abs=0.004)
    assert flicker(row(0.3 * moving + 0.5)) == pytest.approx(expected, abs=0.006)


def test_too_few_frames_have_no_flicker_and_pictures_no_motion() -> None:
    assert math.isnan(flicker(row(videos(2, length=2)))) and motion(row(videos(2, length=2))) > 0
    assert rows_of("changes", pictures(5)).isnan().all()
    found = measure(pictures(5), torch.zeros(5), data=None, extractor=None, num_bootstrap=0)
    assert not {"flicker", "motion"} & found.keys()
    assert MEASURES["flicker"].kind == "time"


def test_a_comparison_says_which_of_two_flickers() -> None:
    def moving(num: int, seed: int) -> Tensor:
        still = pictures(num, seed=seed)
        return torch.stack([still.roll(number, -1) for number in range(6)], dim=2)

    labels = torch.zeros(20, dtype=torch.int64)
    data = reference_from_images(moving(60, 3), torch.zeros(60, dtype=torch.int64), None, "videos")
    steady = moving(20, 1)
    noisy = steady + 0.05 * normal(*steady.shape)
    sides = [[resampled(side, labels, data, num_resamples=50)] for side in (noisy, steady)]
    found = {one.measure: one for one in differences(*sides, data, 20)}
    assert found["flicker"].is_clear and found["flicker"].gain < 0
    (line,) = [line for line in answer("noisy", "steady", list(found.values())) if line.startswith("Motion")]
    assert "steady is better than noisy: flicker" in line


# watched


def test_looks_see_flicker_and_the_variety_of_whole_videos() -> None:
    labels = torch.arange(12) % 2
    samples = videos(12)
    yardstick = Yardstick.of(samples, labels, {})
    assert {"flicker", "motion", "variety"} <= yardstick.target.keys()
    same = pictures(12)
    repeated = same[:, :, None].expand(-1, -1, 4, -1, -1)
    torch.testing.assert_close(varieties(repeated, labels), varieties(same, labels))
    parts = [varieties(samples[:, :, number], labels).square() for number in range(5)]
    torch.testing.assert_close(varieties(samples, labels), torch.stack(parts).mean(0).sqrt())
    assert "flicker" not in Yardstick.of(same, labels, {}).target


# the pipeline


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wan")
    make_wan_vae().save_pretrained(folder / "vae")
    return routed_teacher("wan", folder)


def test_without_an_autoencoder_latents_are_shown_frame_by_frame(wan: Path) -> None:
    model: Any = load_model(wan)
    config = EvalConfig(num_images=6, bootstrap=2, offline=True)
    evaluator = Evaluator(config, CPU, model.sample_shape)
    assert evaluator.image_shape == (3, 8, 8) and any("videos of 3 frames" in note for note in evaluator.notes)
    (drawing,) = draw([(teacher_sampler("t", model, TeacherConfig(), 2), 6)], config, evaluator.decoder)
    assert drawing.images.shape == (6, 3, 3, 8, 8)
    assert 0 <= evaluator.measure(drawing).measures["flicker"].value <= 1


def test_a_model_of_videos_from_distillation_to_comparison(
    wan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "output": str(tmp_path / "run"),
        "teacher": {"path": str(wan), "steps": 2, "cfg_scale": 2.0},
        "student": {"steps": 2, "t_list": [1.0, 0.6], "ema_decay": 0.5},
        "objective": {"name": "dmd", "fake_score": {"updates": 1, "warmup_updates": 1}},
        "roles": {"trainable": "lora", "lora_rank": 2},
        "train": {"steps": 1, "batch_size": 2, "log_every": 1, "grid_every": 1, "save_every": 1},
        "watch": {"num_images": 8, "teacher_steps": 1},
        "evaluate": {"num_images": 12, "offline": True, "bootstrap": 4, "vae": str(wan.parent / "vae")},
    }
    done = distill.run(config)
    assert done is not None and done.report is not None
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "watch/flicker" in log[-1] and "watch/away/motion" in log[-1]
    with Image.open(tmp_path / "run" / "grids" / "step_00000001.png") as grid:
        assert grid.size == (3 * (6 * 32 + 4), 3 * 32)
    assert "Flicker" in done.report.read_text() and "Of each video there are 6 frames" in done.report.read_text()
    student = done.measured["student, 2 steps"].measures
    assert {"flicker", "motion", "ssim_to_teacher"} <= student.keys()

    few, run = ["--num-images", "6"], str(tmp_path / "run")
    assert main(["sample", run, "--output", str(tmp_path / "drawn"), *few]) == 0
    drawn = distill.sample(run, 6)
    assert drawn.images.shape == (6, 3, 9, 32, 32)
    names = ["000000_acat.webp", "000001_aredkiteoverthesea.webp", "000002_twodogs.webp"]
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir())[:3] == names
    with Image.open(tmp_path / "drawn" / names[2]) as written:
        written.seek(8)
        np.testing.assert_array_equal(
            np.array(written.convert("RGB")), to_uint8(drawn.images[2, :, 8]).permute(1, 2, 0)
        )
    with Image.open(tmp_path / "drawn" / "grid.png") as grid:
        assert grid.size == (3 * (6 * 32 + 4), 2 * 32) and drawn.grid(rows=1).size == (3 * (6 * 32 + 4), 32)
    capsys.readouterr()
    assert r"samples are videos [3, 9, 32, 32]" in refused(capsys, "sample", run, "--npz", str(tmp_path / "v.npz"))

    argv = ["--num-images", "12", "--offline", "--output"]
    assert main(["evaluate", run, *argv, str(tmp_path / "measured")]) == 0
    measured = json.loads((tmp_path / "measured" / "measures.json").read_text())["measures"]
    assert measured["flicker"]["value"] == pytest.approx(student["flicker"].value, rel=1e-3)

    (tmp_path / "other").symlink_to(tmp_path / "run")
    pages: list[Report] = []  # a page takes seconds to draw
    monkeypatch.setattr("distill.verbs.compare.write_report", lambda page, folder, beside: pages.append(page) or folder)
    settings, few_images = TeacherConfig(path=str(wan), steps=2), EvalConfig(num_images=12, bootstrap=4, offline=True)
    found = distill.compare([run, tmp_path / "other"], settings, few_images, output=tmp_path / "page")
    assert found is not None and pages[0].frames == 6
    assert found.measured["run, 2 steps"].measures["motion"].value == pytest.approx(student["motion"].value, rel=1e-3)
    check_report(pages[0])
    crop = pages[0].crops[0]
    assert crop.images[0].shape == (3, 32, 6 * 32) and crop.edges[0].shape == (30, 6 * 30)
    np.testing.assert_array_equal(crop.images[0], crop.images[1])


def test_a_model_of_videos_learns_from_latents_of_videos(wan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "00000"
    folder.mkdir(parents=True)
    moments = np.abs(normal(4, 8, 3, 8, 8).numpy())
    listed = []
    for number, array in enumerate(moments):
        np.save(folder / f"{number}.npy", array)
        listed.append([f"00000/{number}.npy", number % 3])
    space = {"channels": 4, "scale": [1.0, 2.0, 3.0, 4.0], "shift": [0.1, 0.2, 0.3, 0.4]}
    (folder.parent / "dataset.json").write_text(json.dumps({"labels": listed, "vae": space}))
    data = load_dataset("latents", folder.parent)
    assert tuple(data.sample_shape) == (4, 3, 8, 8)
    z, _ = data.batch(torch.tensor([1]), torch.zeros)
    np.testing.assert_allclose(z[0, 2].numpy(), (moments[1, 2] - 0.3) * 3, rtol=1e-5)
    done = distill.train(
        {
            "output": str(tmp_path / "tuned"),
            "start": {"path": str(wan), "trainable": "routing"},
            "data": {"name": "latents", "path": str(folder.parent), "prompts": str(wan.parent / "prompts")},
            "train": {"steps": 1, "batch_size": 2, "log_every": 1, "grid_every": 1, "save_every": 1},
            "grid_steps": 1,
        }
    )
    assert done is not None
    with Image.open(tmp_path / "tuned" / "grids" / "step_00000001.png") as grid:
        assert grid.height == 4 * 8 * (84 // math.isqrt(8 * 25))
    tuned: Any = load_model(done.teacher)
    assert tuned.sample_shape == (4, 3, 8, 8) and str(condition_of(tuned)) == "3 prompts"
