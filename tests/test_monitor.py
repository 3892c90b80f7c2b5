"""Figures over a batch are those of the whole batch, however it is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from distill.objectives.monitor import GapByTime, reduced, spread

X = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 2, 8).view(8, 1, 1, 1)


def test_a_spread_is_that_of_all_values(accelerator) -> None:
    assert float(spread(X + 3, accelerator)) == pytest.approx(float((X + 3).std()), rel=1e-5)


def test_a_spread_without_spread(accelerator) -> None:
    assert float(spread(torch.full((4, 1, 2, 2), 0.1), accelerator)) == pytest.approx(0, abs=1e-7)


class Two:
    """Two processes that have the same."""

    device = torch.device("cpu")
    is_main_process = True

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        assert reduction == "sum"
        return 2 * values


def test_what_other_processes_saw_counts() -> None:
    two: Any = Two()
    gap = GapByTime(two)
    assert float(spread(X, two)) == pytest.approx(float(torch.cat([X, X]).std()), rel=1e-5)
    t = torch.linspace(0.05, 0.35, 8)
    gap.add(t, X, torch.zeros_like(X))
    values = gap.take()
    assert values["x0_gap"] == pytest.approx(float(X.abs().mean()), rel=1e-5)
    assert set(values) == {"x0_gap", "x0_gap/t 0.0-0.2", "x0_gap/t 0.2-0.4"}
    assert reduced(torch.ones(2), two).tolist() == [2, 2]


def test_a_look_starts_anew_and_a_state_goes_on(accelerator) -> None:
    first, second = GapByTime(accelerator), GapByTime(accelerator)
    t = torch.tensor([0.1, 0.9])
    first.add(t, X[:2], torch.zeros_like(X[:2]))
    second.load_state_dict(first.state_dict())
    second.add(t, X[2:4], torch.zeros_like(X[2:4]))
    assert second.take()["x0_gap"] == pytest.approx(float(X[:4].abs().mean()), rel=1e-5)
    assert second.take() == {"x0_gap": 0.0}


def test_a_state_of_two_processes_is_taken_up_once() -> None:
    two: Any = Two()
    before, (main, other) = GapByTime(two), (GapByTime(two), GapByTime(two))
    before.add(torch.tensor([0.1]), X[:1], torch.zeros_like(X[:1]))
    main.load_state_dict(before.state_dict())
    two.is_main_process = False
    other.load_state_dict(before.state_dict())
    assert main._gathered().tolist() == [[2 * value for value in row] for row in before._gathered().tolist()]
    assert not other._gathered().any()
