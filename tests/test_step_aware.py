"""A critic that knows which step made its sample: what it changes, on Gaussians whose fixed points are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dar import SiT
from distill.config import LoopConfig, OptimConfig, RolesConfig, StudentConfig, TeacherConfig
from distill.errors import UserError
from distill.models.step_aware import StepAware, step_aware
from distill.objectives import DmdConfig, FakeScoreConfig, RunConfig
from distill.objectives.critic import FakeScore
from distill.objectives.task import DistillationTask, build_models
from distill.training.learner import parameter_groups
from distill.training.loop import run_loop
from tests.conftest import critic
from tests.gaussian_roles import MEAN, STD, distilled
from tests.test_resume import state_of

FOUR = ("student.steps=4", "train.steps=500")
BLIND = "objective.fake_score.knows_step=false"


def test_four_steps_end_where_one_does() -> None:
    """Without guidance at the teacher's law, with guidance of 1.5 where a student of one step ends, too."""
    assert distilled(*FOUR, "teacher.cfg_scale=1") == pytest.approx((MEAN, STD), abs=0.04)
    guided = distilled(*FOUR, "teacher.cfg_scale=1.5", "student.rollout=shared", "train.batch_size=256")  # as many rows
    assert guided == pytest.approx((0.648, 0.287), abs=0.03)
    assert distilled("student.steps=1", "teacher.cfg_scale=1.5") == pytest.approx(guided, abs=0.04)


def test_a_critic_that_is_not_told_matches_the_mixture_alone() -> None:
    """All steps together look right; the last, which a user gets, is a point."""
    mean, std = distilled(*FOUR, "teacher.cfg_scale=1", BLIND)
    assert mean > MEAN + 0.1 and std < STD / 4


@pytest.fixture(params=["all", "lora"])
def config(request: pytest.FixtureRequest, run_config: RunConfig, tiny_model: SiT, tmp_path: Path) -> RunConfig:
    tiny_model.save_pretrained(tmp_path / "base")
    teacher = TeacherConfig(path=str(tmp_path / "base"))
    train = LoopConfig(steps=4, batch_size=4, accumulation=2, log_every=1, save_every=2, grid_every=100)
    return replace(run_config, teacher=teacher, roles=RolesConfig(request.param, lora_rank=4), train=train)


def made(config: RunConfig) -> tuple[DistillationTask, Accelerator]:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    return DistillationTask(config, build_models(config), accelerator, 1.0), accelerator


def test_it_begins_as_the_teacher_and_learns_the_step(config: RunConfig) -> None:
    task, _ = made(config)
    module = critic(task).module
    assert isinstance(module, StepAware)
    x_t, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4) % 3
    with torch.no_grad():
        expected = task.objective.setting.teacher.model(x_t, t, y)
        assert torch.equal(module(x_t, t, y, torch.tensor([0, 1, 0, 1])), expected)
    for step in range(2):
        task.update(step)
    assert (module.step_embedding.weight.abs().amax(1) > 0).all()  # of every step
    with torch.no_grad():
        first, second = (module(x_t, t, y, torch.full((4,), step)) for step in (0, 1))
    assert not torch.equal(first, second)
    groups = parameter_groups(module, 7.0)
    routing = {id(p) for p in module.backbone.routing.parameters() if p.requires_grad}
    assert {id(p) for p in groups[1]["params"]} == routing and groups[1]["lr_factor"] == 7.0


@pytest.mark.parametrize("rollout", ["random_step", "shared", "last_step"])
def test_it_is_told_the_step_that_made_the_sample(config: RunConfig, rollout: str) -> None:
    task, _ = made(replace(config, student=replace(config.student, rollout=rollout)))
    t_list = task.t_list
    inputs = task.objective.setting.rollout.inputs(torch.Generator().manual_seed(0))
    assert torch.equal(t_list[inputs.step], inputs.t_in)
    assert rollout != "last_step" or (inputs.step == len(t_list) - 1).all()


def test_it_is_resumed(config: RunConfig, tmp_path: Path) -> None:
    whole, accelerator = made(config)
    run_loop(whole, config.train, accelerator, tmp_path / "whole")
    expected = state_of(critic(whole).module, whole.student.module)
    first, accelerator = made(config)
    run_loop(first, replace(config.train, steps=2), accelerator, tmp_path / "parts")
    resumed, accelerator = made(config)
    run_loop(resumed, config.train, accelerator, tmp_path / "parts", resume=True)
    found = state_of(critic(resumed).module, resumed.student.module)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_of_one_step_has_nothing_to_tell(run_config: RunConfig, tiny_model: SiT, steps: int) -> None:
    config, critic = replace(run_config, student=StudentConfig(steps=steps)), FakeScoreConfig()
    module = FakeScore.network(config, critic, tiny_model).model
    assert isinstance(module, StepAware) == FakeScore.turn(config, critic).told_step == (steps == 2)


def test_a_backbone_that_takes_no_offset_is_refused_in_one_line() -> None:
    class Plain(torch.nn.Module):
        pass

    with pytest.raises(
        UserError, match=r"^knows_step = true needs a backbone with t_embedding_size and t_offset; Plain"
    ):
        step_aware(Plain(), 4, "knows_step")  # pyright: ignore[reportArgumentType]


def test_checkpointing_reaches_the_backbone(tiny_model: SiT) -> None:
    model = StepAware(tiny_model, 4)
    model.gradient_checkpointing = True
    assert tiny_model.gradient_checkpointing and model.gradient_checkpointing


def test_the_default_tells(tiny_model: SiT) -> None:
    settings = FakeScoreConfig(optim=OptimConfig())
    assert settings.knows_step and DmdConfig().fake_score.knows_step
