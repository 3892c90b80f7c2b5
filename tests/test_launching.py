"""Work that is captured and replayed is the same work, bit for bit; `recording` stands in for a GPU's graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from dar import SiT
from distill.config import LoopConfig, RolesConfig
from distill.errors import NonFiniteError, UserError
from distill.models import launching
from distill.models.frozen import frozen_in
from distill.models.launching import Captured, CapturedModel, Launch, Work
from distill.models.parameters import trainable_parameters
from distill.objectives import RunConfig
from distill.objectives import task as task_module
from distill.objectives.task import DistillationTask, build_models
from distill.training.devices import launch_for
from tests.conftest import perturbed, tiny_config
from tests.recording import Launches, recorded


def test_a_work_is_captured_at_its_second_call_and_keeps_what_it_gave() -> None:
    weight, calls = torch.tensor([2.0]), []

    def work(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x * weight

    captured = Captured(work, recorded)
    given = [captured(torch.full((3,), float(i))) for i in range(5)]
    assert [float(x[0]) for x in given] == [0, 2, 4, 6, 8]
    assert calls == [3, 3]
    weight.fill_(5)
    assert float(captured(torch.ones(3))[0]) == 5
    with torch.autocast("cpu", torch.bfloat16):
        captured(torch.ones(3))
    captured(torch.ones(4))
    assert calls == [3, 3, 3, 4]


def test_what_cannot_be_captured_is_said_and_launched_kernel_by_kernel(caplog) -> None:
    def work(x: Tensor) -> Tensor:
        return x / float(x.max())

    captured = Captured(work, recorded)
    for i in range(1, 4):
        assert float(captured(torch.tensor([float(i), 1.0]))[0]) == 1
    assert sum("cannot be a CUDA graph" in record.message for record in caplog.records) == 1
    strict = Captured(work, recorded, strict=True)
    strict(torch.ones(2))
    with pytest.raises(RuntimeError, match="makes the host wait"):
        strict(torch.ones(2))


def test_the_last_rows_of_many_are_filled_up(monkeypatch, tiny_model) -> None:
    monkeypatch.setattr(launching, "_is_graphed", lambda x: True)
    sizes: list[int] = []
    tiny_model.register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    model = CapturedModel(tiny_model, recorded)
    x, t, y = torch.randn(10, *tiny_model.sample_shape), torch.rand(10), torch.arange(10) % 3
    with torch.no_grad():
        parts = [model(x[i : i + 4], t[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
        assert sizes == [4, 4]  # as it is, captured; then replayed
        torch.testing.assert_close(torch.cat(parts), tiny_model(x, t, y), rtol=1e-4, atol=1e-5)
    model(x[:2], t[:2], y[:2]).sum().backward()  # with a gradient it is the model itself
    assert sizes[-1] == 2


UPDATES = 5


def task_of(config: RunConfig, accelerator: Accelerator, launch: Launch) -> DistillationTask:
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "launch_for", lambda *_: launch)
        return DistillationTask(config, build_models(config), accelerator, 1.0)


def trained(task: DistillationTask) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """All weights after some updates, by name, and the figures of each."""
    figures = [{name: float(value) for name, value in task.update(step).items()} for step in range(UPDATES)]
    task.check()
    tensors = {f"ema.{name}": value for name, value in task.averaged_student.named_parameters()}
    for learner in task.learners:
        tensors |= {f"{learner.role}.{name}": value for name, value in learner.module.named_parameters()}
    return tensors, figures


class Graphs:
    """A launch by graphs that counts their replays; `launches` does not count what is in them."""

    def __init__(self, launches: Launches | None = None) -> None:
        self.launches = launches or Launches()
        self.replays = 0

    def __call__(self, work: Work) -> Work:
        return Captured(work, self._capture, strict=True)

    def _capture(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        outputs, replay = recorded(work)

        def counted() -> None:
            self.replays += 1
            self.launches.paused = True
            replay()
            self.launches.paused = False

        return outputs, counted


@pytest.fixture
def config(run_config, tiny_model, tmp_path) -> RunConfig:
    """Learning rates that differ from update to update."""
    tiny_model.save_pretrained(tmp_path / "teacher")
    optim = replace(run_config.student.optim, warmup_steps=4)
    objective = run_config.objective
    return replace(
        run_config,
        teacher=replace(run_config.teacher, path=str(tmp_path / "teacher")),
        student=replace(run_config.student, optim=optim),
        objective=replace(objective, fake_score=replace(objective.fake_score, optim=optim)),
        train=replace(run_config.train, steps=UPDATES, log_every=2),
    )


VARIANTS = {
    "whole": {},
    "accumulation": {"accumulation": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "lora": {},
}


@pytest.mark.parametrize("rollout", ["random_step", "every_step", "shared"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_from_graphs_are_those_of_single_kernels(config, accelerator, variant: str, rollout: str) -> None:
    config = replace(
        config,
        train=replace(config.train, **VARIANTS[variant]),
        student=replace(config.student, rollout=rollout),
        roles=RolesConfig("lora" if variant == "lora" else "all", 2),
    )
    expected, right = trained(task_of(config, accelerator, launching.eager))
    graphs = Graphs()
    got, figures = trained(task_of(config, accelerator, graphs))
    assert graphs.replays > UPDATES
    assert figures == right
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_a_graph_that_meets_nan_changes_nothing_and_says_which_update_it_was(config, accelerator) -> None:
    task = task_of(config, accelerator, Graphs())
    trained(task)
    before = [parameter.clone() for parameter in task.student.module.parameters()]
    next(iter(task.objective.setting.teacher.model.parameters())).fill_(torch.nan)
    task.objective.update_student(6, log_now=False)
    task.objective.update_student(7, log_now=False)
    assert all(torch.equal(*pair) for pair in zip(before, task.student.module.parameters(), strict=True))
    with pytest.raises(NonFiniteError, match=r"^student: the loss is not finite in its update 7\."):
        task.check()


def test_launches_of_an_update_do_not_grow_with_the_model(config, accelerator, tmp_path) -> None:
    """Two critic updates and the student's, two steps: what is left to Python is the drawing of random numbers."""
    counts = []
    for depth in (2, 4):
        model = perturbed(SiT(tiny_config(depth=depth)))
        model.save_pretrained(tmp_path / str(depth))
        deep = replace(config, teacher=replace(config.teacher, path=str(tmp_path / str(depth))))
        single, whole = Launches(), Launches()
        for launches, launch in ((single, launching.eager), (whole, Graphs(whole))):
            task = task_of(replace(deep, train=replace(deep.train, log_every=100, steps=100)), accelerator, launch)
            for step in range(1, 4):
                task.update(step)
            with launches:
                task.update(4)
        counts.append((single.count, whole.count))
    assert counts[0][1] == counts[1][1] < 200 < counts[0][0] / 4 < counts[1][0] / 6
    assert whole.reads == 0


@pytest.mark.parametrize("roles", ["all", "lora"])
def test_frozen_weights_in_the_precision_of_the_training_change_no_bit(config, accelerator_in_bf16, roles: str) -> None:
    """Nor do graphs, which keep none of the casts that autocast keeps for a while."""
    student = replace(config.student, steps=3)  # two passes in one context of autocast
    config = replace(config, student=student, roles=RolesConfig(roles, 2))
    expected, right = trained(task_of(config, accelerator_in_bf16, launching.eager))
    task = task_of(config, accelerator_in_bf16, Graphs())
    teacher = task.objective.setting.teacher.model
    before = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    with frozen_in("bf16", teacher):
        assert teacher.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
        got, figures = trained(task)
    assert figures == right
    assert all(torch.equal(parameter, before[name]) for name, parameter in teacher.named_parameters())
    trainable = {f"{learner.role}.{name}" for learner in task.learners for name in trainable_parameters(learner.module)}
    assert all(torch.equal(got[name], expected[name]) for name in trainable)


def test_where_graphs_are_not_possible_the_training_says_so(accelerator) -> None:
    assert launch_for(LoopConfig(), accelerator) is launching.eager
    with pytest.raises(
        UserError, match=r"train\.launch = graph is not possible on this device, cpu; take auto or eager"
    ):
        launch_for(LoopConfig(launch="graph"), accelerator)
    with pytest.raises(UserError, match=r"train\.launch must be one of auto, graph, eager; got 'fast'"):
        LoopConfig(launch="fast")
