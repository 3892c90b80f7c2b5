"""The one optimizer step there is."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from distill.config import OptimConfig
from distill.errors import NonFiniteError, UserError
from distill.training.learner import MIN_LOSS_SCALE, Learner, lr_factor, parameter_groups
from distill.training.optimizers import OPTIMIZERS


def learner(accelerator, optim: OptimConfig, value: float = 1.0) -> tuple[Learner, nn.Parameter]:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return Learner("student", model, optim, 10, accelerator), model.weight


def step_on(learn: Learner, step: int, loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Update number `step` on a loss that asks for no batch."""
    values, _ = learn.on(lambda _: (loss(), ()))(step, torch.zeros(1))
    return values


def test_rate_warms_up_stays_and_decays_to_the_last_step() -> None:
    optim = OptimConfig(warmup_steps=4, decay_fraction=0.5)
    factors = [lr_factor(step, 10, optim) for step in range(10)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_rate_without_warmup_or_decay_is_constant() -> None:
    assert {lr_factor(step, 10, OptimConfig()) for step in range(10)} == {1.0}


def test_first_adam_step_has_the_size_of_the_rate(accelerator) -> None:
    learn, weight = learner(accelerator, OptimConfig(lr=0.01))
    values = step_on(learn, 0, lambda: 3.0 * learn.model.weight.sum())
    assert weight.item() == pytest.approx(1 - 0.01, abs=1e-6)
    assert values["loss"] == pytest.approx(3.0)
    assert values["grad_norm"] == pytest.approx(3.0)


def test_the_routing_has_a_rate_of_its_own(accelerator, tiny_model) -> None:
    before = {name: parameter.detach().clone() for name, parameter in tiny_model.named_parameters()}
    optim = OptimConfig(lr=0.01, routing_lr_factor=0.1, clip_norm=1e9)
    learn = Learner("teacher", tiny_model, optim, 10, accelerator)
    step_on(learn, 0, lambda: sum(p.sum() for p in learn.model.parameters() if p.requires_grad))
    for name, parameter in tiny_model.named_parameters():
        if parameter.requires_grad:
            step = 0.001 if name.startswith("routing.") else 0.01
            assert (before[name] - parameter).mean().item() == pytest.approx(step, rel=1e-3), name


def test_groups_hold_what_learns_and_nothing_else(tiny_model) -> None:
    tiny_model.requires_grad_(False)
    tiny_model.routing.requires_grad_(True)
    (group,) = parameter_groups(tiny_model, 0.5)
    assert group["lr_factor"] == 0.5 and len(group["params"]) == len(list(tiny_model.routing.parameters()))


def test_adam_in_8_bit_needs_a_cuda_device_and_bitsandbytes(accelerator, monkeypatch) -> None:
    optim = OptimConfig(name="adamw_8bit")
    with pytest.raises(UserError, match=r"optim\.name = adamw_8bit needs a CUDA device, and this is cpu"):
        learner(accelerator, optim)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes: pip install 'dar-distill\[eight_bit\]'"):
        OPTIMIZERS["adamw_8bit"]([{"params": [nn.Parameter(torch.zeros(1))]}], optim, torch.device("cuda"))
    with pytest.raises(UserError, match=r"optim\.name must be one of adamw, adamw_8bit; got 'sgd'"):
        OptimConfig(name="sgd")


@pytest.mark.gpu
def test_adam_in_8_bit_steps_like_adam_with_a_quarter_of_its_memory() -> None:
    pytest.importorskip("bitsandbytes")
    weights, sizes = [], []
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(256, 256, device="cuda"))
        optimizer = OPTIMIZERS[name]([{"params": [weight]}], OptimConfig(name=name, lr=0.01), weight.device)
        for _ in range(5):
            weight.grad = weight.detach().clone()
            optimizer.step()
        weights.append(weight.detach())
        sizes.append(sum(v.nbytes for v in optimizer.state[weight].values() if isinstance(v, torch.Tensor)))
    assert (weights[0] - weights[1]).abs().mean() < 0.001  # of 0.05 that each went
    assert sizes[1] < 0.3 * sizes[0]


def test_micro_batches_are_averaged(accelerator) -> None:
    learn, _ = learner(accelerator, OptimConfig(clip_norm=100))
    values = learn.on(lambda scale: (scale.mean() * learn.model.weight.sum(), ()), 2)(0, torch.tensor([2.0, 4.0]))[0]
    assert values["grad_norm"] == pytest.approx(3.0)
    assert values["loss"] == pytest.approx(3.0)


def test_processes_exchange_the_gradients_of_the_last_micro_batch(accelerator, monkeypatch) -> None:
    learn, _ = learner(accelerator, OptimConfig())
    kept_apart: list[bool] = []

    @contextmanager
    def no_sync(model: nn.Module) -> Iterator[None]:
        assert model is learn.model
        kept_apart.append(True)
        yield
        kept_apart.append(False)

    def loss(x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        apart.append(kept_apart[-1:] == [True])
        return (x * learn.model.weight).sum(), ()

    apart: list[bool] = []
    monkeypatch.setattr(accelerator, "no_sync", no_sync)
    learn.on(loss, 3)(0, torch.ones(3))
    assert apart == [True, True, False]


def test_gradient_is_clipped_before_the_step(accelerator) -> None:
    model = nn.Linear(1, 1, bias=False)
    learn = Learner("student", model, OptimConfig(clip_norm=0.5), 10, accelerator)
    seen = []
    learn.optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append(model.weight.grad.clone()))
    step_on(learn, 0, lambda: 3.0 * learn.model.weight.sum())
    assert seen[0].item() == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_loss_stops_before_the_step(accelerator, bad: float) -> None:
    learn, weight = learner(accelerator, OptimConfig(lr=0.1))
    step_on(learn, 7, lambda: bad * learn.model.weight.sum())
    step_on(learn, 8, lambda: learn.model.weight.sum())  # nor does a later one change anything
    assert weight.item() == 1.0
    (state,) = learn.optimizer.optimizer.state.values()
    assert not any(value.any() for value in state.values())
    with pytest.raises(NonFiniteError, match=r"^student: the loss is not finite in its update 8\."):
        learn.check()


def test_non_finite_gradient_stops_before_the_step(accelerator) -> None:
    learn, weight = learner(accelerator, OptimConfig(lr=0.1), value=0.0)
    learn.check()
    step_on(learn, 3, lambda: learn.model.weight.abs().sqrt().sum())  # finite at 0, with an infinite slope
    assert weight.item() == 0.0
    with pytest.raises(NonFiniteError, match=r"^student: the gradient is not finite in its update 4\."):
        learn.check()


def test_the_kernel_of_8_bits_is_not_told_and_the_host_looks(accelerator) -> None:
    learn, weight = learner(accelerator, OptimConfig(lr=0.1))
    learn.optim.name = "adamw_8bit"
    with pytest.raises(NonFiniteError, match=r"^student: the loss is not finite in its update 8\."):
        step_on(learn, 7, lambda: math.nan * learn.model.weight.sum())
    assert weight.item() == 1.0 and not learn.optimizer.optimizer.state


class Scaler:
    """A loss scale, as far as the learner asks."""

    def __init__(self, value: float) -> None:
        self.value = value

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def get_scale(self) -> float:
        return self.value


def test_gradients_may_overflow_as_long_as_the_loss_scale_can_fall(accelerator) -> None:
    learn, _ = learner(accelerator, OptimConfig(), value=0.0)
    steep = lambda: learn.model.weight.abs().sqrt().sum()  # noqa: E731
    accelerator.scaler = Scaler(MIN_LOSS_SCALE)
    assert MIN_LOSS_SCALE == 1e-4
    assert not step_on(learn, 0, steep)["grad_norm"].isfinite()
    learn, weight = learner(accelerator, OptimConfig(), value=0.0)
    accelerator.scaler = Scaler(MIN_LOSS_SCALE / 2)
    with pytest.raises(NonFiniteError, match="the gradient is not finite"):
        step_on(learn, 0, steep)
    assert weight.item() == 0.0


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_beginning_anew_forgets_moments(accelerator, monkeypatch, name: str) -> None:
    """In place where a CUDA graph may hold them: the tensors stay. In 8 bits all is made anew."""
    monkeypatch.setitem(OPTIMIZERS, "adamw_8bit", OPTIMIZERS["adamw"])
    learn, weight = learner(accelerator, OptimConfig(name=name, lr=0.01))
    step_on(learn, 0, lambda: learn.model.weight.sum())
    before, moments = weight, learn.optimizer.state[weight]["exp_avg"]
    assert moments.item() != 0
    learn.restart({"weight": torch.tensor([[5.0]])})
    assert learn.module.weight is before and weight.item() == 5
    if name == "adamw":
        assert learn.optimizer.state[weight]["exp_avg"] is moments
        assert not any(state.any() for state in learn.optimizer.state[weight].values())
    else:
        assert not learn.optimizer.state
    step_on(learn, 1, lambda: -learn.model.weight.sum())  # as a first step: the size of the rate, the other way
    assert weight.item() == pytest.approx(5.01, abs=1e-6)


def test_no_gradient_is_left_behind(accelerator) -> None:
    learn, weight = learner(accelerator, OptimConfig())
    step_on(learn, 0, lambda: learn.model.weight.sum())
    assert weight.grad is None
