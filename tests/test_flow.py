"""The path, guidance and samplers, on flows whose answer is known."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.conditions import ClassLabels
from distill.config import TConfig
from distill.sampling import euler, euler_maruyama, few_step_sample, heun, rollout
from distill.sampling.few_step import num_noises
from distill.sampling.flow import (
    combine_cfg,
    interpolate,
    t_like,
    velocity_to_x0,
)
from distill.sampling.guidance import Denoiser
from distill.sampling.schedules import quantile_t, random_t, shift_t, t_grid
from distill.sampling.solvers import LAST_STEP, SOLVERS, sde_grid
from distill.seeds import generator_for


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X0, EPS = draw(4, 2, 3, 3), draw(4, 2, 3, 3, seed=1)
T = torch.tensor([0.1, 0.4, 0.9, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("t", [T, torch.tensor(0.3, dtype=torch.float64)], ids=["per sample", "scalar"])
def test_the_velocity_undoes_the_interpolation(t):
    x_t, velocity = interpolate(X0, EPS, t), EPS - X0
    torch.testing.assert_close(velocity_to_x0(x_t, velocity, t), X0)


def test_zero_is_data_and_one_is_noise():
    assert torch.equal(interpolate(X0, EPS, torch.zeros(4, dtype=torch.float64)), X0)
    assert torch.equal(interpolate(X0, EPS, torch.ones(4, dtype=torch.float64)), EPS)


def test_t_goes_with_its_own_sample():
    x_t = interpolate(X0, EPS, T)
    for i in range(4):
        torch.testing.assert_close(x_t[i], (1 - T[i]) * X0[i] + T[i] * EPS[i])
    assert t_like(T, X0).shape == (4, 1, 1, 1) and t_like(T[0], X0).shape == ()


def test_guidance_at_zero_one_and_two():
    cond, uncond = X0, EPS
    torch.testing.assert_close(combine_cfg(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(combine_cfg(cond, uncond, 1.0), cond)
    torch.testing.assert_close(combine_cfg(cond, uncond, 2.0), 2 * cond - uncond)


def test_guiding_velocity_and_guiding_x0_are_the_same():
    x_t, cond, uncond = draw(4, 2, 3, 3, seed=2), X0, EPS
    guided = velocity_to_x0(x_t, combine_cfg(cond, uncond, 3.0), T)
    other = combine_cfg(velocity_to_x0(x_t, cond, T), velocity_to_x0(x_t, uncond, T), 3.0)
    torch.testing.assert_close(guided, other)


# grids of t


def test_shift_moves_t_to_the_published_values():
    t = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(shift_t(t, 5.0), torch.tensor([1, 0.9375, 5 / 6, 0.625]))
    assert torch.equal(shift_t(t, 1.0), t)
    torch.testing.assert_close(shift_t(shift_t(t, 5.0), 0.2), t)


@pytest.mark.parametrize("num_steps", [1, 4, 7])
def test_grid_runs_from_noise_to_data(num_steps):
    expected = [1 - i / num_steps for i in range(num_steps + 1)]
    torch.testing.assert_close(t_grid(num_steps), torch.tensor(expected))
    shifted = t_grid(num_steps, shift=3.0)
    torch.testing.assert_close(shifted, torch.tensor([3 * t / (1 + 2 * t) for t in expected]))
    assert shifted[0] == 1 and shifted[-1] == 0


def test_a_grid_needs_a_step():
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        t_grid(0)


@pytest.mark.parametrize(
    ("name", "quantile"),
    [("uniform", lambda p: p), ("logit_normal", lambda p: 1 / (1 + math.exp(-math.sqrt(2) * erfinv(2 * p - 1))))],
)
def test_t_samplers_have_their_distribution(name, quantile):
    config = TConfig(sampler=name, low=0.2, high=0.7)
    t = random_t(config, 20000, generator_for(0, name), t_range=(0.0, 1.0))
    assert t.shape == (20000,) and t.min() >= 0.2 and t.max() <= 0.7
    for p in (0.1, 0.25, 0.5, 0.9):
        assert float(t.quantile(p)) == pytest.approx(0.2 + 0.5 * quantile(p), abs=0.01)


def test_moved_distributions_become_uniform_and_stay_so():
    """By a cosine: half way after half of the updates."""
    u = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    shifted = TConfig(sampler="shifted", shift=5.0, settles_over=10)
    beta = TConfig(sampler="beta", alpha=3.0, beta=1.0, settles_over=10)
    torch.testing.assert_close(quantile_t(shifted, u, 0), 5 * u / (1 + 4 * u))
    torch.testing.assert_close(quantile_t(shifted, u, 5), 3 * u / (1 + 2 * u))
    torch.testing.assert_close(quantile_t(beta, u, 0), u ** (1 / 3))
    torch.testing.assert_close(quantile_t(beta, u, 5), u ** (1 / 2))
    for config in (shifted, beta):
        for step in (10, 15, 20):
            torch.testing.assert_close(quantile_t(config, u, step), u)
    torch.testing.assert_close(quantile_t(TConfig(sampler="shifted", shift=5.0), u, 20), 5 * u / (1 + 4 * u))


def erfinv(x: float) -> float:
    return float(torch.erfinv(torch.tensor(x, dtype=torch.float64)))


def test_generators_depend_on_seed_and_purpose_alone():
    def number(*key: Any) -> float:
        return float(torch.rand((), generator=generator_for(*key)))

    assert number(1, "student", 3) == number(1, "student", 3)
    others = {number(1, "student", 3), number(2, "student", 3), number(1, "critic", 3), number(1, "student", 4)}
    assert len(others) == 4


# solvers, on data that is N(mean, std^2) in each pixel

MEAN, STD = 0.7, 0.4


def gaussian_velocity(x_t: Tensor, t: Tensor) -> Tensor:
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, STD^2): both are jointly Gaussian with x_t."""
    t = t_like(t, x_t)
    variance = (1 - t) ** 2 * STD**2 + t**2
    residual = x_t - (1 - t) * MEAN
    return residual * (t - (1 - t) * STD**2) / variance - MEAN


def gaussian_solution(noise: Tensor) -> Tensor:
    """The flow keeps the number of standard deviations: from N(0, 1) at t = 1 to N(MEAN, STD^2) at t = 0."""
    return MEAN + STD * noise


def grid(num_steps: int) -> Tensor:
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


@pytest.mark.parametrize("solver", [euler, heun])
def test_constant_velocity_is_solved_exactly(solver):
    slope = draw(4, 2, 3, 3, seed=5)
    uneven = torch.tensor([1.0, 0.9, 0.4, 0.0], dtype=torch.float64)
    torch.testing.assert_close(solver(lambda x, t: slope, EPS, uneven), EPS - slope)


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(solver, order):
    errors = [
        float((solver(gaussian_velocity, EPS, grid(n)) - gaussian_solution(EPS)).abs().max()) for n in (64, 128, 256)
    ]
    observed = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert observed == pytest.approx([order, order], abs=0.1)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(("solver", "calls"), [(euler, [1, 0.5]), (heun, [1, 0.5, 0.5])])
def test_solvers_evaluate_where_they_say(solver, calls):
    """heun's last step is an Euler step: nothing is ever evaluated at t = 0."""
    seen = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (4,) and t.dtype == x.dtype
        seen.append(float(t[0]))
        return gaussian_velocity(x, t)

    solver(velocity, EPS, grid(2))
    assert seen == calls


def test_the_sde_has_the_law_of_the_data():
    generator = generator_for(0, "sde")
    noise = torch.randn(250, 20_000, 1, 1, 1, dtype=torch.float64, generator=generator)
    steps = sde_grid(250).double()
    assert len(steps) == 251 and steps[0] == 1 and steps[-2] == pytest.approx(LAST_STEP) and steps[-1] == 0
    x0 = euler_maruyama(gaussian_velocity, noise[0], noise[1:], steps)
    assert float(x0.mean()) == pytest.approx(MEAN, abs=0.01) and float(x0.std()) == pytest.approx(STD, rel=0.02)
    # The correlation with the first noise, which the ODE keeps at 1, falls by w / variance per unit of t.
    t = torch.linspace(0, 1, 1001)
    expected = torch.exp(-torch.trapezoid(t / ((1 - t) ** 2 * STD**2 + t**2), t))
    correlation = torch.corrcoef(torch.stack([x0.flatten(), noise[0].flatten()]))[0, 1]
    assert float(correlation) == pytest.approx(float(expected), abs=0.03)


def test_the_sde_takes_its_last_step_without_noise():
    x = draw(4, 2, 3, 3, seed=5)
    steps = torch.tensor([0.5, 0.3, 0.0], dtype=torch.float64)
    fresh = draw(1, 4, 2, 3, 3, seed=6)
    slope = draw(4, 2, 3, 3, seed=7)
    # By hand, with score = -(x + (1 - t) v) / t: x - dt (v - t score) + sqrt(2 t dt) z, then x - dt (v - t score).
    middle = x - 0.2 * (slope + x + 0.5 * slope) + math.sqrt(2 * 0.5 * 0.2) * fresh[0]
    expected = middle - 0.3 * (slope + middle + 0.7 * slope)
    torch.testing.assert_close(euler_maruyama(lambda x, t: slope, x, fresh, steps), expected)
    assert sde_grid(2).tolist() == pytest.approx([1, LAST_STEP, 0])
    with pytest.raises(ValueError, match="at least 2 steps; got 1"):
        sde_grid(1)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_begin_with_the_first_noise_and_use_all(name):
    """At the largest t that the model knows."""
    solver = SOLVERS[name]
    steps, noise = solver.grid(3, (0.0, 0.75)).double(), draw(solver.num_noises(3), 4, 2, 3, 3)
    seen = []

    def solved(noise: Tensor) -> Tensor:
        return solver.solve(lambda x, t: seen.append((x, t)) or gaussian_velocity(x, t), noise, steps)

    plain = solved(noise)
    assert torch.equal(seen[0][0], 0.75 * noise[0]) and (seen[0][1] == 0.75).all()
    for k in range(len(noise)):
        other = noise.clone()
        other[k] += 1
        assert not torch.allclose(solved(other), plain)


# guidance

NULL = 9
LABELS = ClassLabels(NULL)


class Counting:
    """velocity = (1 + y) x_t + t, and a list of the labels it was asked for."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.labels.append(y.tolist())
        return (1 + t_like(y, x_t)) * x_t + t_like(t, x_t)


Y = torch.tensor([0, 1, 2, 3])


def by_hand(x_t: Tensor, scales: Tensor) -> Tensor:
    cond, uncond = Counting()(x_t, T, Y), Counting()(x_t, T, torch.full_like(Y, NULL))
    return torch.stack([u + s * (c - u) for c, u, s in zip(cond, uncond, scales, strict=True)])


def test_scale_one_never_asks_for_the_null_class():
    model = Counting()
    velocity = Denoiser(model, LABELS, 1.0).velocity(EPS, T, Y)
    assert model.labels == [Y.tolist()]
    torch.testing.assert_close(velocity, Counting()(EPS, T, Y))


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5, 4.0])
def test_guidance_is_the_combination(cfg_scale):
    model = Counting()
    denoiser = Denoiser(model, LABELS, cfg_scale)
    torch.testing.assert_close(denoiser.velocity(EPS, T, Y), by_hand(EPS, torch.full((4,), cfg_scale)))
    assert model.labels == [[*Y.tolist(), NULL, NULL, NULL, NULL]]
    torch.testing.assert_close(denoiser.x0(EPS, T, Y), velocity_to_x0(EPS, denoiser.velocity(EPS, T, Y), T))
    torch.testing.assert_close(denoiser.velocity_field(Y)(EPS, T), denoiser.velocity(EPS, T, Y))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_rescaled_guidance_comes_to_the_size_of_the_conditional_velocity(share):
    """And points where guidance does; each sample by itself."""
    guided, cond = by_hand(EPS, torch.full((4,), 4.0)).flatten(1), Counting()(EPS, T, Y).flatten(1)
    size = (1 - share) * guided.norm(dim=1) + share * cond.norm(dim=1)
    expected = guided / guided.norm(dim=1, keepdim=True) * size[:, None]
    found = Denoiser(Counting(), LABELS, 4.0, cfg_rescale=share).velocity(EPS, T, Y)
    torch.testing.assert_close(found.flatten(1), expected)
    nothing = Denoiser(lambda x_t, t, y: 0 * x_t, LABELS, 4.0, cfg_rescale=share).velocity(EPS, T, Y)
    assert torch.equal(nothing, 0 * EPS)


def test_interval_acts_per_sample():
    """t = 0.1, 0.4, 0.9, 1.0 in [0.4, 0.95]: the borders belong to it."""
    denoiser = Denoiser(Counting(), LABELS, 3.0, interval=(0.4, 0.95))
    torch.testing.assert_close(denoiser.velocity(EPS, T, Y), by_hand(EPS, torch.tensor([1.0, 3.0, 3.0, 1.0])))


def test_guidance_on_the_first_channels_is_the_official_samplers():
    """forward_with_cfg of DiT and SiT, three of four channels guided and the fourth conditional, by hand in float64."""
    x_t = draw(4, 4, 3, 3, seed=6)
    model = Counting()
    velocity = Denoiser(model, LABELS, 3.0, cfg_channels=3).velocity(x_t, T, Y)
    assert model.labels == [[*Y.tolist(), NULL, NULL, NULL, NULL]]
    doubled, labels = torch.cat([x_t, x_t]), torch.cat([Y, torch.full_like(Y, NULL)])
    eps, rest = Counting()(doubled, torch.cat([T, T]), labels).split([3, 1], dim=1)
    cond, uncond = eps.chunk(2)
    half = uncond + 3.0 * (cond - uncond)
    torch.testing.assert_close(velocity, torch.cat([torch.cat([half, half]), rest], dim=1)[:4])
    assert not torch.allclose(velocity[:, 3], by_hand(x_t, torch.full((4,), 3.0))[:, 3])
    whole, four = (Denoiser(Counting(), LABELS, 3.0, cfg_channels=n).velocity(x_t, T, Y) for n in (None, 4))
    assert torch.equal(whole, four)


def test_outside_the_interval_the_null_class_is_not_run():
    model = Counting()
    Denoiser(model, LABELS, 3.0, interval=(0.2, 0.3)).velocity_field(Y)(EPS, T)
    assert model.labels == [Y.tolist()]


def test_where_guidance_acts_everywhere_no_t_is_looked_at():
    """On the meta device a value that is looked at is an error."""
    x_t, t, y = (part.to("meta") for part in (EPS, T, Y))
    velocity = Denoiser(lambda x_t, t, y: x_t, LABELS, 3.0).velocity_field(y)
    assert velocity(x_t, t).shape == EPS.shape
    with pytest.raises(RuntimeError, match="meta"):
        Denoiser(lambda x_t, t, y: x_t, LABELS, 3.0, interval=(0.0, 0.9)).velocity_field(y)(x_t, t)


def test_guided_evaluations_count_twice():
    times = torch.tensor([1.0, 0.75, 0.5, 0.25])
    assert Denoiser(Counting(), LABELS, 1.0).evaluations(times) == 4
    assert Denoiser(Counting(), LABELS, 1.5).evaluations(times) == 8
    assert Denoiser(Counting(), LABELS, 1.5, interval=(0.25, 0.6)).evaluations(times) == 6


# few steps


class Recording:
    """A student that keeps its inputs."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.seen.append((x_t.clone(), t.clone()))
        return torch.sin(3 * x_t) + t_like(t, x_t) + t_like(y, x_t)


NOISE = draw(4, 4, 2, 3, 3, seed=8)
T_LIST = t_grid(4, shift=3.0)[:-1].double()


def test_few_step_sample_by_hand():
    x_t = NOISE[0]
    for step, t in enumerate(T_LIST):
        x0 = x_t - t * Recording()(x_t, t.expand(4), Y)
        if step < 3:
            x_t = (1 - T_LIST[step + 1]) * x0 + T_LIST[step + 1] * NOISE[step + 1]
    torch.testing.assert_close(few_step_sample(Denoiser(Recording(), LABELS), NOISE, Y, T_LIST), x0)


def test_training_inputs_are_the_samplers_inputs():
    """Same noise, same numbers to the bit: what the student is trained on is what it will meet."""
    student = Recording()
    few_step_sample(Denoiser(student, LABELS), NOISE, Y, T_LIST)
    assert len(student.seen) == 4
    for num_done, (x_t, t) in enumerate(student.seen):
        assert torch.equal(rollout(Denoiser(Recording(), LABELS), NOISE, Y, T_LIST, num_done), x_t)
        assert torch.equal(t, T_LIST[num_done].expand(4))


def test_few_step_sample_is_the_last_rollout_and_its_x0():
    denoiser = Denoiser(Recording(), LABELS)
    x_t = rollout(denoiser, NOISE, Y, T_LIST, 3)
    expected = denoiser.x0(x_t, T_LIST[3].expand(4), Y)
    assert torch.equal(few_step_sample(denoiser, NOISE, Y, T_LIST), expected)


@pytest.mark.parametrize(
    ("steps", "ode_steps", "num"), [(4, 0, 4), (4, 2, 4), (4, 3, 1), (4, 4, 1), (1, 0, 1), (2, 0, 2)]
)
def test_the_last_step_takes_no_noise(steps: int, ode_steps: int, num: int):
    assert num_noises(steps, ode_steps) == num


def test_the_first_input_is_the_noise_itself():
    student = Recording()
    assert torch.equal(rollout(Denoiser(student, LABELS), NOISE, Y, T_LIST, 0), NOISE[0])
    assert not student.seen
    few_step_sample(Denoiser(student, LABELS), NOISE[:1], Y, T_LIST[:1])
    assert torch.equal(student.seen[0][0], NOISE[0]) and len(student.seen) == 1


def test_rollouts_carry_no_gradient():
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    x_t = rollout(Denoiser(lambda x, t, y: weight * x, LABELS), NOISE, Y, T_LIST, 2)
    assert not x_t.requires_grad
