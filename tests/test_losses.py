"""Losses by their gradients."""

import math

import pytest
import torch
from torch import Tensor

from distill.objectives.losses import dmd_loss, flow_matching_loss
from distill.sampling.flow import interpolate, velocity_to_x0

SHAPE = (3, 2, 4, 4)


def draw(seed: int, dtype=torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradient(x0_gen: Tensor, x0_teacher: Tensor, x0_fake: Tensor) -> Tensor:
    x0_gen = x0_gen.clone().requires_grad_()
    return torch.autograd.grad(dmd_loss(x0_gen, x0_teacher, x0_fake), x0_gen)[0]


def test_dmd_gradient_is_normalised_sample_by_sample():
    """Samples differ in size by 10^4, so that a normaliser over the whole batch is far off."""
    size = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64).view(3, 1, 1, 1)
    x0_gen, x0_teacher, x0_fake = (size * draw(seed) for seed in range(3))
    got = gradient(x0_gen, x0_teacher, x0_fake)
    for i in range(3):
        weight = 1 / (float((x0_gen[i] - x0_teacher[i]).abs().mean()) + 1e-6)
        torch.testing.assert_close(got[i], (x0_fake[i] - x0_teacher[i]) * weight / x0_gen.numel())


def test_dmd_gradient_points_from_fake_to_teacher():
    """A step down the gradient moves the sample towards where the teacher sees more mass than the critic."""
    x0_gen = draw(0)
    step = -gradient(x0_gen, x0_gen + 1.0, x0_gen - 1.0)
    assert (step > 0).all()


def test_dmd_vanishes_where_critic_and_teacher_agree():
    assert torch.count_nonzero(gradient(draw(0), draw(1), draw(1))) == 0
    assert float(dmd_loss(draw(0), draw(1), draw(1))) == 0


def test_a_sample_that_the_teacher_leaves_as_it_is_is_not_the_whole_update():
    """Its normaliser would be nothing; the mean of its gradient is 10 in size, in the critic's direction."""
    got = gradient(draw(0), draw(0), draw(1)) * draw(0).numel()
    away = draw(1) - draw(0)
    sizes = away.abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(got, 10 * away / sizes)


def test_weights_count_samples():
    x0_gen, weights = draw(0).requires_grad_(), torch.tensor([2.0, 0.0, 1.0])
    dmd_loss(x0_gen, draw(1), draw(2), weights).backward()
    assert x0_gen.grad is not None
    torch.testing.assert_close(x0_gen.grad, gradient(draw(0), draw(1), draw(2)) * weights.view(3, 1, 1, 1))


def test_dmd_treats_both_estimates_as_constants():
    x0_gen, x0_teacher, x0_fake = (draw(seed).requires_grad_() for seed in range(3))
    dmd_loss(x0_gen, x0_teacher, x0_fake).backward()
    assert x0_gen.grad is not None and x0_teacher.grad is None and x0_fake.grad is None
    with pytest.raises(RuntimeError, match="does not require grad"):
        dmd_loss(draw(0), x0_teacher, x0_fake).backward()


def test_dmd_in_bf16_is_computed_in_float32():
    """Teacher and critic differ by one bf16 ulp: bf16 arithmetic would lose the quotient's digits."""
    x0_gen, x0_teacher = draw(0, torch.bfloat16), draw(1, torch.bfloat16)
    x0_fake = x0_teacher * (1 + 2**-7)
    assert dmd_loss(x0_gen, x0_teacher, x0_fake).dtype == torch.float32
    exact = gradient(x0_gen.double(), x0_teacher.double(), x0_fake.double())
    torch.testing.assert_close(gradient(x0_gen.float(), x0_teacher, x0_fake).double(), exact, rtol=1e-4, atol=1e-8)
    got = gradient(x0_gen, x0_teacher, x0_fake)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-8)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_dmd_names_shapes_that_differ(odd):
    parts = [draw(0)] * 3
    parts[odd] = parts[odd][:1]  # would broadcast
    with pytest.raises(ValueError, match=r"equal shapes; .*\(1, 2, 4, 4\)"):
        dmd_loss(*parts)


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_dmd_does_not_hide_what_is_not_finite(odd):
    parts = [draw(seed) for seed in range(3)]
    parts[odd][1, 0, 0, 0] = math.nan
    assert dmd_loss(*parts).isnan()
    got = gradient(*parts)
    assert got[1].isnan().any() and got[0].isfinite().all() and got[2].isfinite().all()


def gaussian_x0(x_t: Tensor, t: float, mean: float, std: float) -> Tensor:
    """E[x0 | x_t] for x0 ~ N(mean, std^2), from the score of N((1 - t) mean, (1 - t)^2 std^2 + t^2)."""
    variance = (1 - t) ** 2 * std**2 + t**2
    score = -(x_t - (1 - t) * mean) / variance
    return (x_t + t**2 * score) / (1 - t)  # Tweedie


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_dmd_on_gaussians_is_the_closed_form(t):
    """Data N(m, s^2), student N(n, s^2): both scores are exact and their difference is a constant,

    x0_fake - x0_teacher = t^2 (n - m) / ((1 - t)^2 s^2 + t^2), the gradient of KL(student || data) up to
    its positive weight.
    """
    m, n, s = 0.3, -0.5, 0.6
    x0_gen = n + s * draw(0)
    x_t = interpolate(x0_gen, draw(1), torch.tensor(t, dtype=torch.float64))
    x0_teacher, x0_fake = gaussian_x0(x_t, t, m, s), gaussian_x0(x_t, t, n, s)
    difference = t**2 * (n - m) / ((1 - t) ** 2 * s**2 + t**2)
    distance = (x0_gen - x0_teacher).abs().mean(dim=(1, 2, 3), keepdim=True)
    expected = (difference / (distance + 1e-6) / x0_gen.numel()).expand(SHAPE)
    torch.testing.assert_close(gradient(x0_gen, x0_teacher, x0_fake), expected)


def test_dmd_descent_finds_the_data_mean():
    """Critic exact at each step: a student N(n, s^2) that follows the gradient ends at n = m."""
    m, s, t = 0.3, 0.6, 0.5
    n = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    for step in range(300):
        x0_gen = n + s * draw(2 * step)
        x_t = interpolate(x0_gen.detach(), draw(2 * step + 1), torch.tensor(t, dtype=torch.float64))
        loss = dmd_loss(x0_gen, gaussian_x0(x_t, t, m, s), gaussian_x0(x_t, t, float(n.detach()), s))
        n = (n - 0.1 * torch.autograd.grad(loss, n)[0]).detach().requires_grad_()
    assert float(n.detach()) == pytest.approx(m, abs=1e-3)


def test_flow_matching_is_the_mean_square_to_eps_minus_x0():
    x0, eps, velocity = draw(0), draw(1), draw(2).requires_grad_()
    loss = flow_matching_loss(velocity, x0, eps)
    error = velocity.detach() - (eps - x0)
    torch.testing.assert_close(loss.double(), error.square().mean(), rtol=1e-6, atol=0)
    (got,) = torch.autograd.grad(loss, velocity)
    torch.testing.assert_close(got, 2 * error / error.numel(), rtol=1e-5, atol=1e-9)
    assert float(flow_matching_loss(eps - x0, x0, eps)) == 0


def test_flow_matching_in_bf16_is_summed_in_float32():
    x0, eps, velocity = (draw(seed, torch.bfloat16) for seed in range(3))
    loss = flow_matching_loss(velocity, x0, eps)
    exact = (velocity.double() - (eps - x0).double()).square().mean()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)


def test_flow_matching_treats_data_and_noise_as_constants():
    x0, eps, velocity = (draw(seed).requires_grad_() for seed in range(3))
    flow_matching_loss(velocity, x0, eps).backward()
    assert x0.grad is None and eps.grad is None and velocity.grad is not None


def test_flow_matching_minimum_is_the_conditional_mean():
    """On Gaussian data the best linear velocity at one t, by least squares, is the exact field's slope."""
    m, s, t = 0.0, 0.6, 0.4
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(200000, 1, 1, 1, generator=generator) * scale for scale in (s, 1.0))
    x_t = interpolate(x0, eps, torch.tensor(t))
    slope = torch.zeros((), requires_grad=True)
    (at_zero,) = torch.autograd.grad(flow_matching_loss(slope * x_t, x0, eps), slope)
    best = float(-at_zero / (2 * x_t.square().mean()))  # the loss is quadratic in the slope
    x0_slope = float(gaussian_x0(torch.tensor(1.0), t, m, s))
    assert best == pytest.approx((1 - x0_slope) / t, abs=0.01)
    probe = torch.ones(1, 1, 1, 1)
    assert float(velocity_to_x0(probe, best * probe, torch.tensor(t))) == pytest.approx(x0_slope, abs=0.01)
