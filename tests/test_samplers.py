"""Image i of a seed is the same image whatever is drawn beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dar import SiT
from distill.conditions import ClassLabels
from distill.config import TeacherConfig
from distill.errors import UserError
from distill.processes import Processes
from distill.sampling import draw_batches, draw_images, in_precision, noise_for
from distill.sampling.samplers import (
    configured_vae,
    few_step_sampler,
    grid_conditions,
    load_sampler,
    num_in_grid,
    save_student,
    teacher_sampler,
)
from distill.sampling.schedules import t_grid
from tests.conftest import perturbed, tiny_config


def test_images_do_not_depend_on_the_batch_size(tiny_model: SiT) -> None:
    sampler = few_step_sampler("student", tiny_model, t_grid(3)[:-1])
    labels = ClassLabels(3).balanced(7)
    whole, _ = draw_images(sampler, labels, seed=5, batch_size=7)
    parts, _ = draw_images(sampler, labels, seed=5, batch_size=2)
    assert torch.allclose(whole, parts, atol=1e-5)
    other, _ = draw_images(sampler, labels, seed=6, batch_size=7)
    assert not torch.allclose(whole, other, atol=1e-2)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_processes_share_all_images(number: int) -> None:
    parts = torch.stack([Processes(index, number).share(10, 17) for index in range(number)])
    assert parts.flatten()[:7].tolist() == [10, 11, 12, 13, 14, 15, 16]  # parts of one size; the last one may recur
    assert parts.flatten()[7:].unique().tolist() in ([], [16])


def test_processes_draw_what_one_draws(tiny_model: SiT) -> None:
    class Two(Processes):
        """Of two processes, each asked for its part where the other's is."""

        def gather(self, images: torch.Tensor) -> torch.Tensor:
            parts.append(images)
            return images.repeat(2, 1, 1, 1)

    sampler = teacher_sampler("t", tiny_model, TeacherConfig(solver="sde"), 3)
    labels = ClassLabels(3).balanced(7)
    alone, _ = draw_images(sampler, labels, seed=5, batch_size=7)
    rounds = []
    for index in range(2):
        parts: list[torch.Tensor] = []
        given = draw_batches(sampler, labels, seed=5, batch_size=2, start=1, processes=Two(index, 2))
        assert [len(images) for images, _ in given] == [4, 2]
        rounds.append(parts)
    together = torch.cat([part for pair in zip(*rounds, strict=True) for part in pair])
    torch.testing.assert_close(together, alone[1:], atol=1e-5, rtol=1e-4)


def test_the_network_alone_draws_in_bf16(tiny_model: SiT) -> None:
    seen = []
    embedder = tiny_model.x_embedder.proj
    embedder.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    sampler = teacher_sampler("t", tiny_model, TeacherConfig(), 2)
    half = in_precision(sampler, "bf16")
    assert half.description == f"{sampler.description}, in bf16" and in_precision(sampler, "no") is sampler
    y = ClassLabels(3).balanced(3)
    images, _ = draw_images(half, y, seed=0, batch_size=3)
    assert seen[-1] == (torch.float32, torch.bfloat16) and images.dtype == torch.float32
    whole, _ = draw_images(sampler, y, seed=0, batch_size=3)
    assert 0 < float((images - whole).abs().max()) < 0.05


def test_teacher_and_student_start_from_the_same_noise() -> None:
    one, three = (noise_for(range(4), num, (1, 8, 8), seed=2) for num in (1, 3))
    assert torch.equal(one[0], three[0])
    assert not torch.equal(three[0], three[1])


def test_evaluations_count_guidance_and_heun(tiny_model: SiT) -> None:
    assert teacher_sampler("t", tiny_model, TeacherConfig(cfg_scale=2.0), 50).evaluations == 100
    assert teacher_sampler("t", tiny_model, TeacherConfig(cfg_scale=1.0), 50).evaluations == 50
    assert teacher_sampler("t", tiny_model, TeacherConfig(cfg_scale=1.0, solver="heun"), 10).evaluations == 19
    assert few_step_sampler("s", tiny_model, t_grid(4)[:-1]).evaluations == 4


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7), (0.85, 0.9), (0.6, 0.8)])
@pytest.mark.parametrize(
    ("solver", "cfg_scale"), [("euler", 1.0), ("euler", 2.0), ("heun", 1.0), ("heun", 2.0), ("sde", 2.0)]
)
def test_evaluations_are_those_that_are_made(
    tiny_model: SiT, solver: str, cfg_scale: float, interval: tuple[float, float]
) -> None:
    rows = []
    tiny_model.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    settings = TeacherConfig(cfg_scale=cfg_scale, interval=interval, solver=solver)
    sampler = teacher_sampler("t", tiny_model, settings, 5)
    draw_images(sampler, ClassLabels(3).balanced(3), seed=0, batch_size=3)
    assert sum(rows) == 3 * sampler.evaluations


def test_saved_student_brings_its_t_list(tmp_path: Path, tiny_model: SiT) -> None:
    t_list = t_grid(3, shift=2.0)[:-1]
    save_student(tiny_model, t_list, tmp_path / "student")
    sampler = load_sampler(str(tmp_path), TeacherConfig())  # the run folder stands for its student
    assert (sampler.role, sampler.num_steps) == ("student", 3)
    expected = few_step_sampler("student", tiny_model, t_list)
    labels = ClassLabels(3).balanced(3)
    images = [draw_images(s, labels, seed=1, batch_size=3)[0] for s in (sampler, expected)]
    assert torch.equal(*images)
    (tmp_path / "student" / "sampler.json").write_text(json.dumps({"kind": "few_step"}))
    with pytest.raises(UserError, match=r"sampler.json: t_list must be a list of numbers; got None"):
        load_sampler(str(tmp_path), TeacherConfig())


def test_a_model_without_a_list_is_a_teacher(tmp_path: Path, tiny_model: SiT) -> None:
    tiny_model.save_pretrained(tmp_path / "teacher")
    sampler = load_sampler(str(tmp_path / "teacher"), TeacherConfig(steps=7, cfg_scale=1.5))
    assert (sampler.role, sampler.num_steps, sampler.evaluations) == ("teacher", 7, 14)
    assert sampler.description == "7 euler steps, cfg_scale 1.5"


def test_guided_channels_are_part_of_what_is_drawn(tiny_model: SiT) -> None:
    sampler = teacher_sampler("t", tiny_model, TeacherConfig(cfg_channels=1), 5)
    assert sampler.description == "5 euler steps, cfg_scale 1.5 on channels 0 to 0"
    with pytest.raises(UserError, match=r"teacher\.cfg_channels = 3; the model has 1"):
        teacher_sampler("t", tiny_model, TeacherConfig(cfg_channels=3), 5)
    with pytest.raises(UserError, match=r"teacher\.cfg_channels must be at least 1; got 0"):
        TeacherConfig(cfg_channels=0)


def test_guided_channels_reach_the_model() -> None:
    torch.manual_seed(0)
    model = SiT(tiny_config(in_channels=4))
    perturbed(model, std=0.3)
    labels = ClassLabels(3).balanced(3)

    def one_step(cfg_channels: int | None) -> torch.Tensor:
        settings = TeacherConfig(cfg_scale=4.0, cfg_channels=cfg_channels)
        return draw_images(teacher_sampler("t", model, settings, 1), labels, seed=0, batch_size=3)[0]

    unguided = teacher_sampler("t", model, TeacherConfig(cfg_scale=1.0), 1)
    cond, _ = draw_images(unguided, labels, seed=0, batch_size=3)
    everything = one_step(None)
    assert torch.allclose(one_step(3), torch.cat([everything[:, :3], cond[:, 3:]], dim=1), atol=1e-4)
    assert not torch.allclose(everything[:, 3], cond[:, 3], atol=1e-3)


def test_a_grid_shows_ten_classes_at_most() -> None:
    assert grid_conditions(ClassLabels(3), 2).tolist() == [0, 0, 1, 1, 2, 2]
    assert grid_conditions(ClassLabels(1000), 1).tolist() == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


def test_the_autoencoder_that_a_run_names(tmp_path: Path) -> None:
    for name, text in (
        ("run/student", "evaluate: {vae: /some/evaluate}"),
        ("training/teacher", "evaluate: null\ndata: {vae: /some/data}"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name).with_name("config.yaml").write_text(f"output: here\n{text}\n")
    assert (
        configured_vae(str(tmp_path / "run")) == configured_vae(str(tmp_path / "run" / "student")) == "/some/evaluate"
    )
    assert configured_vae(str(tmp_path / "training")) == "/some/data"
    assert configured_vae("embedded") is None
    (tmp_path / "run" / "config.yaml").write_text("output: here\n")
    assert configured_vae(str(tmp_path / "run")) is None
    (tmp_path / "bare").mkdir()
    assert configured_vae(str(tmp_path / "bare")) is None


def test_a_reports_grid_goes_as_far_as_its_images() -> None:
    assert [num_in_grid(8, *numbers) for numbers in ((10, 2000), (1000, 5000), (10, 20))] == [80, 200, 20]


def test_labels_are_balanced() -> None:
    assert torch.bincount(ClassLabels(3).balanced(11)).tolist() == [4, 4, 3]
