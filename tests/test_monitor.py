"""Figures over a batch are those of the whole batch, however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.objectives.monitor import Monitor, ratios, reduced

X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 8).view(8, 1, 1, 1)


class Two:
    """Two processes that have the same."""

    device = torch.device("cpu")
    is_main_process = True

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return 2 * values


def add(monitor: Monitor, t: list[float], step: list[int], x0_gen: Tensor, gap: Tensor) -> None:
    monitor.add(torch.tensor(t), torch.tensor(step), x0_gen, gap, torch.zeros_like(gap))


def test_the_drift_is_of_all_values_and_of_the_last_steps_apart(accelerator) -> None:
    monitor = Monitor(accelerator, 3, teacher_std=2.0)
    add(monitor, [0.5] * 5, [0, 1, 0, 1, 2], X[:5] + 3, X[:5])
    add(monitor, [0.5] * 3, [2, 2, 0], X[5:] + 3, X[5:])
    values = monitor.take()
    late, early = X[[4, 5, 6]], X[[0, 1, 2, 3, 7]]
    for name, part in (("", X), ("last_step/", late), ("earlier_steps/", early)):
        assert values[f"{name}std_drift"] == pytest.approx(float(part.std()) / 2 - 1, rel=1e-5)
        assert values[f"{name}x0_gap"] == pytest.approx(float(part.abs().mean()), rel=1e-5)


def test_a_drift_without_spread(accelerator) -> None:
    monitor = Monitor(accelerator, 1, teacher_std=1.0)
    add(monitor, [0.5] * 4, [0] * 4, torch.full((4, 1, 2, 2), 0.1), X[:4])
    values = monitor.take()
    assert values["std_drift"] == pytest.approx(-1, abs=1e-7)
    assert not any("step" in name for name in values)  # one step has no others to stand apart from
    add(monitor, [0.5], [0], X[:1, :, :1, :1], X[:1])
    assert monitor.take().keys() == {"x0_gap", "x0_gap/t 0.4-0.6"}  # one value has no spread to drift


def test_what_other_processes_saw_counts() -> None:
    two: Any = Two()
    monitor = Monitor(two, 2, teacher_std=1.0)
    add(monitor, torch.linspace(0.05, 0.35, 8).tolist(), [0] * 8, X, X)
    values = monitor.take()
    assert values["std_drift"] == pytest.approx(float(torch.cat([X, X]).std()) - 1, rel=1e-5)
    assert values["x0_gap"] == pytest.approx(float(X.abs().mean()), rel=1e-5)
    assert {name for name in values if "/t " in name} == {"x0_gap/t 0.0-0.2", "x0_gap/t 0.2-0.4"}
    assert "earlier_steps/x0_gap" in values and "last_step/x0_gap" not in values  # of which there is none
    assert reduced(torch.ones(2), two).tolist() == [2, 2]


def test_a_look_starts_anew_and_a_state_goes_on(accelerator) -> None:
    first, second = (Monitor(accelerator, 1, teacher_std=1.0) for _ in range(2))
    add(first, [0.1, 0.9], [0, 0], X[:2], X[:2])
    second.load_state_dict(first.state_dict())
    add(second, [0.1, 0.9], [0, 0], X[2:4], X[2:4])
    values = second.take()
    assert values["x0_gap"] == pytest.approx(float(X[:4].abs().mean()), rel=1e-5)
    assert values["std_drift"] == pytest.approx(float(X[:4].std()) - 1, rel=1e-5)
    assert second.take() == {}


def test_a_state_of_two_processes_is_taken_up_once() -> None:
    two: Any = Two()
    before, main, other = (Monitor(two, 2, teacher_std=1.0) for _ in range(3))
    add(before, [0.1], [1], X[:1], X[:1])
    main.load_state_dict(before.state_dict())
    two.is_main_process = False
    other.load_state_dict(before.state_dict())
    for name, state in main.state_dict().items():
        assert torch.equal(state, 2 * before.state_dict()[name]) and not other.state_dict()[name].any()


def test_ratios_by_step() -> None:
    found = ratios("lag", torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 1.0, 2.0]))
    assert found == {"lag": 9 / 4, "last_step/lag": 3, "earlier_steps/lag": 1.5}
    assert ratios("lag", torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == {"lag": 1, "earlier_steps/lag": 1}
