"""The distillation task: who is updated when, from which numbers, and that it goes where theory says."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from dar import SiT
from distill.conditions import ClassLabels
from distill.config import LoopConfig, RolesConfig, TeacherConfig, config_from_overrides
from distill.errors import UserError
from distill.models.ema import limited_decay
from distill.objectives import RunConfig
from distill.objectives.dmd import Dmd
from distill.objectives.losses import dmd_loss, flow_matching_loss
from distill.objectives.mixture import turns_of
from distill.objectives.rollouts import ROLLOUTS, Rollout
from distill.objectives.task import DistillationTask
from distill.sampling import few_step_sample
from distill.sampling.flow import interpolate, t_like, velocity_to_x0
from distill.sampling.guidance import Denoiser
from distill.sampling.schedules import t_grid
from distill.seeds import generator_for
from distill.training.preflight import preflight
from tests.conftest import build_roles, critic, models_of, perturbed
from tests.recording import Launches


@pytest.fixture(params=["all", "lora"])
def run_config(request: pytest.FixtureRequest, run_config: RunConfig) -> RunConfig:
    """Whatever learns, the loop is the same."""
    return replace(run_config, roles=RolesConfig(request.param, lora_rank=4))


def make_task(config: RunConfig, model: SiT, accelerator) -> DistillationTask:
    folder = Path(config.output).with_name("base")
    model.save_pretrained(folder)
    torch.manual_seed(0)
    roles = build_roles(replace(config.teacher, path=str(folder)), config.roles)
    return DistillationTask(config, models_of(config, roles), accelerator, 1.0)


def member(task: DistillationTask) -> Dmd:
    return cast(Dmd, task.objective.members["dmd"])


def rollout_of(task: DistillationTask) -> Rollout:
    return task.objective.setting.rollout


def snapshot(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_roles_start_equal_and_only_student_and_critic_move(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    inputs = torch.randn(4, 1, 8, 8), torch.rand(4), torch.arange(4)

    def outputs() -> list[Tensor]:
        with torch.no_grad():
            return [role(*inputs) for role in (member(task).teacher.model, task.student.module, critic(task).module)]

    before = outputs()
    assert torch.equal(before[0], before[1]) and torch.equal(before[0], before[2])
    task.update(0)
    teacher, student, fake_score = outputs()
    assert torch.equal(teacher, before[0])
    assert not torch.equal(student, before[1]) and not torch.equal(fake_score, before[2])
    assert not torch.equal(student, fake_score)


def test_critic_updates_leave_student_and_ema_alone(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    student, ema, fake_score = (
        snapshot(task.student.module),
        snapshot(task.ema.module),
        snapshot(critic(task).module),
    )
    member(task).fake_score.update(0, 0, with_lag=False)
    assert torch.equal(student, snapshot(task.student.module))
    assert torch.equal(ema, snapshot(task.ema.module))
    assert not torch.equal(fake_score, snapshot(critic(task).module))
    assert all(p.grad is None for p in task.student.module.parameters())


def test_student_update_leaves_the_critic_and_its_gradients_alone(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    fake_score = snapshot(critic(task).module)
    task.objective.update_student(0, log_now=False)
    assert torch.equal(fake_score, snapshot(critic(task).module))
    assert all(p.grad is None for p in critic(task).module.parameters())


def test_ema_moves_once_per_student_update(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    decay = limited_decay(run_config.student.ema_decay, run_config.train.steps)
    for step in range(3):
        before = snapshot(task.averaged_student)
        task.update(step)
        student = snapshot(task.student.module)
        expected = student if step == 0 else decay * before + (1 - decay) * student
        assert torch.allclose(snapshot(task.averaged_student), expected, atol=1e-7)


def test_critic_updates_per_student_update_and_warm_up(run_config, tiny_model, accelerator, monkeypatch) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    seen: list[int] = []
    with_lags: list[int] = []
    update = member(task).fake_score.update

    def recorded(number: int, step: int, *, with_lag: bool) -> dict[str, Tensor]:
        seen.append(number)
        with_lags.extend([number] if with_lag else [])
        return update(number, step, with_lag=with_lag)

    monkeypatch.setattr(member(task).fake_score, "update", recorded)
    task.update(0)
    assert seen == [0, 1, 2]  # one of warm-up, two regular
    task.update(1)
    assert seen == [0, 1, 2, 3, 4] and with_lags == [2, 4]
    task.objective.members["dmd"].teach(2, log_now=False)
    assert seen[5:] == [5, 6] and with_lags == [2, 4]


def test_the_critics_lag_is_its_loss_over_the_teachers(run_config, tiny_model, accelerator) -> None:
    """On the same samples, noise and t; 1 where it is still the teacher."""
    task = make_task(run_config, tiny_model, accelerator)
    fake_score = member(task).fake_score
    assert float(fake_score.update(0, 0, with_lag=True)["fake_score/lag"]) == pytest.approx(1, rel=1e-6)
    perturbed(critic(task).module, std=0.3)
    generator = generator_for(run_config.train.seed, "fake_score", 1)
    inputs = rollout_of(task).inputs(generator)
    t, x0 = torch.rand(8, generator=generator), rollout_of(task).finished(inputs)
    eps = torch.randn(8, 1, 8, 8, generator=generator)
    x_t = interpolate(x0, eps, t)
    with torch.no_grad():
        velocities = [model(x_t, t, inputs.y) for model in (critic(task).module, member(task).teacher.model)]
    losses = [float((velocity - (eps - x0)).square().mean()) for velocity in velocities]
    figures = fake_score.update(1, 0, with_lag=True)
    assert float(figures["fake_score/lag"]) == pytest.approx(losses[0] / losses[1], rel=1e-4)
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)


def test_where_the_teacher_is_asked_is_drawn_as_configured(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    t, eps = member(task).batch(3, 8, generator_for(0))
    assert torch.equal(t, 0.02 + 0.96 * torch.rand(8, generator=(drawn := generator_for(0))))
    assert torch.equal(eps, torch.randn(8, 1, 8, 8, generator=drawn))


@pytest.mark.parametrize("rollout", ["random_step", "every_step", "shared"])
def test_accumulation_gives_the_same_update(run_config, tiny_model, accelerator, rollout) -> None:
    whole = replace(run_config, student=replace(run_config.student, rollout=rollout))
    parts = replace(whole, train=replace(whole.train, accumulation=2))
    values = [
        member(make_task(config, tiny_model, accelerator)).fake_score.update(0, 0, with_lag=True)
        for config in (whole, parts)
    ]
    for name in ("loss", "grad_norm", "lag"):
        of_whole, of_parts = (float(each[f"fake_score/{name}"]) for each in values)
        assert of_whole == pytest.approx(of_parts, rel=1e-5)
    values = [
        make_task(config, tiny_model, accelerator).objective.update_student(0, log_now=True)
        for config in (whole, parts)
    ]
    for name in ("student/loss", "student/grad_norm"):
        assert float(values[0][name]) == pytest.approx(float(values[1][name]), rel=1e-5)


@pytest.mark.parametrize("rollout", ["random_step", "every_step", "shared"])
def test_drift_is_of_the_whole_batch_however_it_is_cut(run_config, tiny_model, accelerator, rollout) -> None:
    config = replace(run_config, student=replace(run_config.student, rollout=rollout))
    task = make_task(config, tiny_model, accelerator)
    inputs = rollout_of(task).inputs(generator_for(config.train.seed, "student", 0))
    rollout_of(task).begin(0)
    with torch.no_grad():
        x0_gen = velocity_to_x0(inputs.x_in, task.student.module(*inputs[:3]), inputs.t_in)
    for accumulation in (1, 2, 4):
        parts = replace(config, train=replace(config.train, accumulation=accumulation))
        values = make_task(parts, tiny_model, accelerator).objective.update_student(0, log_now=True)
        assert values["std_drift"] == pytest.approx(float(x0_gen.std()) - 1, abs=1e-6)


def test_training_inputs_are_the_samplers_own(run_config, tiny_model, accelerator) -> None:
    """Finishing the last row of inputs gives what `few_step_sample` gives from the same noise."""
    run_config = replace(run_config, student=replace(run_config.student, steps=3))
    task = make_task(run_config, tiny_model, accelerator)
    inputs = rollout_of(task).inputs(generator_for(run_config.train.seed, "student", 5))
    size = run_config.train.batch_size
    generator = generator_for(run_config.train.seed, "student", 5)
    labels = torch.randint(3, (size,), generator=generator)
    noise = torch.randn(3, size, 1, 8, 8, generator=generator)
    assert torch.equal(inputs.y[:size], labels)
    assert torch.equal(inputs.x_in[:size], noise[0])
    with torch.no_grad():
        parts = zip(*(part.split(size) for part in inputs[:3]), strict=True)  # step by step
        x0 = [velocity_to_x0(x, task.student.module(x, t, y), t) for x, t, y in parts]
        expected = few_step_sample(Denoiser(task.student.module, ClassLabels(3)), noise, labels, task.t_list)
    assert torch.equal(x0[-1], expected)
    assert torch.equal(inputs.x0, torch.cat(x0[:-1]))  # the rollout has come that far
    assert torch.equal(rollout_of(task).finished(inputs), torch.cat(x0))


def test_random_step_shares_one_step_over_the_batch(run_config, tiny_model, accelerator) -> None:
    config = replace(run_config, student=replace(run_config.student, rollout="random_step"))
    task = make_task(config, tiny_model, accelerator)
    met = set()
    for step in range(12):
        inputs = rollout_of(task).inputs(generator_for(config.train.seed, "student", step))
        t_in = inputs.t_in
        x0 = rollout_of(task).finished(inputs)
        assert len(t_in) == len(x0) == config.train.batch_size
        assert len(t_in.unique()) == 1
        met.add(round(float(t_in[0]), 6))
    assert met == {round(float(t), 6) for t in task.t_list}


def test_shared_batches_are_rows_of_one_rollout(run_config, tiny_model, accelerator) -> None:
    """Three batches of 4 rows, of 4 trajectories of 3 steps: every row once, in no order, as the sampler makes them."""
    config = replace(run_config, student=replace(run_config.student, rollout="shared", steps=3))
    task = make_task(config, tiny_model, accelerator)
    rollout_of(task).begin(7)
    generator = torch.Generator()
    batches = [rollout_of(task).inputs(generator) for _ in range(3)]
    assert [len(batch.x0) for batch in batches] == [4, 4, 4]
    own = generator_for(config.train.seed, "rollout", 7, 0)
    labels = torch.randint(3, (4,), generator=own)
    noise = torch.randn(3, 4, 1, 8, 8, generator=own)
    student = Denoiser(task.student.module, ClassLabels(3))
    expected = few_step_sample(student, noise, labels, task.t_list)
    rows = torch.cat([batch.x0 for batch in batches])
    last = torch.cat([batch.t_in for batch in batches]) == task.t_list[-1]
    nearest = torch.cdist(rows[last].flatten(1), expected.flatten(1)).min(1)
    assert float(nearest.values.max()) < 1e-4 and nearest.indices.unique().numel() == 4
    for batch in batches:
        remade = velocity_to_x0(batch.x_in, task.student.module(batch.x_in, batch.t_in, batch.y).detach(), batch.t_in)
        torch.testing.assert_close(batch.x0, remade, rtol=1e-4, atol=1e-5)
    assert torch.cat([batch.t_in for batch in batches]).unique().numel() == 3
    assert any(batch.t_in.unique().numel() > 1 for batch in batches)


@pytest.mark.parametrize(("num_steps", "num_batches"), [(4, 6), (4, 4), (2, 3)])
def test_a_shared_rollout_is_the_same_in_any_number_of_processes(num_steps: int, num_batches: int) -> None:
    def batches(processes: int, index: int) -> list[Any]:
        config = config_from_overrides(RunConfig, ["output=unused", "train.batch_size=8"])
        one: Any = SimpleNamespace(
            num_processes=processes, process_index=index, device=torch.device("cpu"), autocast=nullcontext
        )
        learner: Any = SimpleNamespace(predict=lambda x, t, y: x * t_like(t + y, x))
        t_list = torch.linspace(1, 1 / num_steps, num_steps)
        shared = ROLLOUTS["shared"](config, one, ClassLabels(3), (1, 2, 2), t_list, learner, num_batches)
        shared.begin(3)
        return [shared.inputs(torch.Generator()) for _ in range(num_batches)]

    alone = batches(1, 0)
    steps = torch.cat([batch.step for batch in alone])
    assert torch.equal(steps.bincount(), torch.full((num_steps,), 8 * num_batches // num_steps))  # each alike often
    for processes in (2, 4):
        for whole, *parts in zip(alone, *(batches(processes, index) for index in range(processes)), strict=True):
            assert torch.equal(torch.cat([part.step for part in parts]), whole.step)
            torch.testing.assert_close(torch.cat([part.x0 for part in parts]), whole.x0)


@pytest.mark.parametrize(("rollout", "read"), [("random_step", 3), ("every_step", 0), ("shared", 0)])
def test_the_host_waits_for_nothing_in_an_update_that_is_not_logged(
    run_config, tiny_model, accelerator, rollout: str, read: int
) -> None:
    """Reading a value of a device, by float(), bool() or .item(), is what makes a host wait for it. The step of a
    random_step is the host's own number.
    """
    student = replace(run_config.student, rollout=rollout)
    train = replace(run_config.train, log_every=100, steps=1000)
    task = make_task(replace(run_config, student=student, train=train), tiny_model, accelerator)
    task.update(4)  # what is built once
    with Launches() as launches:
        task.update(5)
    assert launches.reads == read


def test_a_shared_rollout_asks_the_student_once_per_row(run_config, tiny_model, accelerator) -> None:
    config = replace(run_config, student=replace(run_config.student, rollout="shared"))
    task = make_task(config, tiny_model, accelerator)
    asked: list[int] = []
    task.student.module.register_forward_hook(
        lambda _module, inputs, _output: asked.append(0 if torch.is_grad_enabled() else len(inputs[0]))
    )
    task.update(1)
    turns = turns_of(task.config)
    assert sum(asked) == 12 == sum(turn.per_update * 4 for turn in turns)
    task.update(0)  # one more critic update, of the warm-up, takes a rollout of its own
    assert sum(asked) == 12 + 24


def test_student_gradient_vanishes_where_critic_is_the_unguided_teacher(run_config, tiny_model, accelerator) -> None:
    config = replace(run_config, teacher=TeacherConfig(cfg_scale=1.0))
    task = make_task(config, tiny_model, accelerator)
    assert task.objective.update_student(0, log_now=True)["student/grad_norm"] == 0.0
    guided = make_task(replace(run_config, teacher=TeacherConfig(cfg_scale=2.0)), tiny_model, accelerator)
    assert guided.objective.update_student(0, log_now=True)["student/grad_norm"] > 1e-6


def test_preflight_passes_a_sound_teacher_and_names_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sound(nn.Module):
        """velocity = eps - x0 of data at 0 with unit variance, from x_t alone."""

        null_label = 3
        sample_shape = (1, 8, 8)
        t_range = (0.0, 1.0)

        def __init__(self, factor: float = 1.0) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor))

        def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            t = t_like(t, x_t)
            return self.factor * x_t * (2 * t - 1) / (t**2 + (1 - t) ** 2)

    class OtherInOnePlace(Sound):
        def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
            velocity = super().forward(x_t, t, y)
            velocity[:, 0, 0, 0] += 0.5
            return velocity

    settings = TeacherConfig(cfg_scale=1.0)
    std = preflight(Sound(), {"student": Sound(), "fake_score": Sound()}, settings)
    expected = 1.0  # what ten Euler steps make of unit noise in this linear field
    for t, t_next in zip(t_grid(10).tolist()[:-1], t_grid(10).tolist()[1:], strict=True):
        expected *= 1 + (t_next - t) * (2 * t - 1) / (t**2 + (1 - t) ** 2)
    assert std == pytest.approx(expected, rel=0.04)
    with pytest.raises(UserError, match="slope -1"):
        preflight(Sound(-1.0), {"student": Sound(-1.0), "fake_score": Sound(-1.0)}, settings)
    with pytest.raises(UserError, match="fake_score differs from the teacher"):
        preflight(Sound(), {"student": Sound(), "fake_score": Sound(1.01)}, settings)
    with pytest.raises(UserError, match=r"student differs from the teacher at the start, by up to 0\.5"):
        preflight(Sound(), {"student": OtherInOnePlace()}, settings)
    drawn = torch.tensor([1.0, -1.0]).repeat(5000)
    for std in (0.11, 2.9):
        monkeypatch.setattr("distill.training.preflight.draw_images", lambda *_, std=std, **__: (std * drawn, None))
        assert preflight(Sound(), {}, settings) == pytest.approx(std, rel=1e-3)
    for std, message in ((0.09, "std 0.09; expected 0.1 to 3"), (3.1, "std 3.1"), (torch.nan, "are not finite")):
        monkeypatch.setattr("distill.training.preflight.draw_images", lambda *_, std=std, **__: (std * drawn, None))
        with pytest.raises(UserError, match=message):
            preflight(Sound(), {}, settings)


class GaussianFlow(nn.Module):
    """The exact velocity of data N(mean, std^2), with mean and std as its parameters.

    E[x0 | x_t] = mean + (1-t) std^2 / ((1-t)^2 std^2 + t^2) (x_t - (1-t) mean); velocity = (x_t - E) / t.
    """

    def __init__(self, mean: float, log_std: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_std = nn.Parameter(torch.tensor(log_std))

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        t, variance = t_like(t, x_t), (2 * self.log_std).exp()
        gain = (1 - t) * variance / ((1 - t) ** 2 * variance + t**2)
        return self.mean + gain * (x_t - (1 - t) * self.mean)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t - self.x0(x_t, t)) / t_like(t, x_t)


def test_distillation_moves_a_gaussian_student_to_the_teachers_mean_and_variance() -> None:
    """A one-step generator x0 = m + s eps, a teacher N(0.5, 0.4^2), and a critic that is learnt by regression."""
    torch.manual_seed(0)
    teacher = GaussianFlow(0.5, -0.916).requires_grad_(False)
    critic = GaussianFlow(-0.3, 0.0)
    mean, log_std = nn.Parameter(torch.tensor(-0.3)), nn.Parameter(torch.tensor(0.0))
    student_optimizer = torch.optim.Adam([mean, log_std], lr=0.01, betas=(0.0, 0.95))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=0.02, betas=(0.0, 0.95))

    def generate() -> Tensor:
        return mean + log_std.exp() * torch.randn(256, 1, 1, 4)

    for _ in range(250):
        for _ in range(3):
            x0, eps, t = generate().detach(), torch.randn(256, 1, 1, 4), 0.02 + 0.96 * torch.rand(256)
            loss = flow_matching_loss(critic(interpolate(x0, eps, t), t), x0, eps)
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
        x0, t = generate(), 0.02 + 0.96 * torch.rand(256)
        x_t = interpolate(x0, torch.randn_like(x0), t).detach()
        loss = dmd_loss(x0, teacher.x0(x_t, t), critic.x0(x_t, t).detach())
        student_optimizer.zero_grad()
        loss.backward()
        student_optimizer.step()
    assert mean.item() == pytest.approx(0.5, abs=0.06)
    assert log_std.exp().item() == pytest.approx(0.4, abs=0.06)


def test_t_list_is_the_samplers_grid_without_its_end(run_config, tiny_model, accelerator) -> None:
    task = make_task(run_config, tiny_model, accelerator)
    assert torch.equal(task.t_list, t_grid(2)[:-1])


def test_loop_config_is_refused_where_it_makes_no_sense() -> None:
    with pytest.raises(UserError, match=r"train.steps must be at least 1; got 0"):
        LoopConfig(steps=0)
