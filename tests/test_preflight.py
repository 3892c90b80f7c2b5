"""The preflight: teachers as they really are pass, networks read the wrong way do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dar import SiT
from dar.predictions import PREDICTIONS
from distill.assets import asset
from distill.config import TeacherConfig
from distill.conformance.conventions import SLOPE_RANGE, convention_of
from distill.errors import UserError
from distill.sampling.flow import t_like
from distill.training.preflight import preflight
from tests.test_protocol import Reread

DDPM = PREDICTIONS["ddpm_eps"]
UNGUIDED = TeacherConfig(cfg_scale=1.0)


def power_spectrum(power: float, std: float) -> Tensor:
    """Variances (32, 32) of a stationary Gaussian field by frequency, |f|^(-2 power); 0 is white, 1 an image's."""
    f = torch.fft.fftfreq(32)
    variances = (f[:, None].square() + f.square()).sqrt().add(1 / 32).pow(-2 * power)
    return std**2 * variances / variances.mean()


Estimate = tuple[Tensor, Tensor]
Error = Callable[[Tensor], Tensor]


class DdpmGaussian(nn.Module):
    """DiT's network at its best, for data of a given spectrum, with an error: z_i, i -> eps, then read as a teacher.

    output: of the exact (eps, x0) and (a, b) what the network says.
    """

    null_label = 4
    sample_shape = (4, 32, 32)
    t_range = DDPM.t_range

    def __init__(
        self,
        variances: Tensor,
        error: Error = lambda eps: 0 * eps,
        output: Callable[..., Tensor] = lambda eps, x0, a, b: eps,
    ) -> None:
        super().__init__()
        self.variances = nn.Parameter(variances)
        self.error, self.output = error, output

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        z = DDPM.network_input(x_t, t)
        t_row = t_like(t, x_t)
        norm = ((1 - t_row).square() + t_row.square()).sqrt()
        a, b = (1 - t_row) / norm, t_row / norm
        spectrum = torch.fft.fft2(z) / (a.square() * self.variances + b.square())
        eps, x0 = torch.fft.ifft2(b * spectrum).real, torch.fft.ifft2(a * self.variances * spectrum).real
        return DDPM.velocity(self.output(eps + self.error(eps), x0, a, b), x_t, t)


def low_frequencies(eps: Tensor) -> Tensor:
    f = torch.fft.fftfreq(32)
    return torch.fft.ifft2(torch.fft.fft2(eps) * ((f[:, None].square() + f.square()).sqrt() < 0.1)).real


ERRORS: dict[str, Callable[[float], Error]] = {
    "scale": lambda size: lambda eps: size * eps,
    "bias": lambda size: lambda eps: size + 0 * eps,
    "neighbours": lambda size: lambda eps: size * eps.roll(1, -1),
    "low frequencies": lambda size: lambda eps: size * low_frequencies(eps),
}


@pytest.mark.parametrize("size", [-0.03, -0.01, 0.01, 0.03])
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("power", "std"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_a_ddpm_teacher_with_the_errors_of_a_real_one_passes(power: float, std: float, kind: str, size: float) -> None:
    teacher = DdpmGaussian(power_spectrum(power, std), ERRORS[kind](size))
    assert preflight(teacher, {"student": teacher}, UNGUIDED) < 1.6


def test_the_end_of_ddpms_schedule_tells_nothing() -> None:
    """An error of 1 % of eps is one of 158 % of the slope there; that is why the slope is taken elsewhere."""
    for size in (-0.01, 0.01):
        teacher = DdpmGaussian(power_spectrum(1.0, 1.0), ERRORS["scale"](size))
        eps = torch.randn(8, *teacher.sample_shape, generator=torch.Generator().manual_seed(0))
        end = teacher.t_range[1]
        with torch.no_grad():
            velocity = teacher(end * eps, torch.full((8,), end), torch.zeros(8, dtype=torch.int64))
        slope = float((velocity * eps).sum() / eps.square().sum())
        assert slope == pytest.approx(1 + size / (1 - end), abs=0.05)
        assert not SLOPE_RANGE[0] <= slope <= SLOPE_RANGE[1]
        assert convention_of(teacher).complaint == ""


WRONG: dict[str, Callable[..., Tensor]] = {
    "eps with the other sign": lambda eps, x0, a, b: -eps,
    "x0": lambda eps, x0, a, b: x0,
    "v": lambda eps, x0, a, b: a * eps - b * x0,
    "our velocity": lambda eps, x0, a, b: eps - x0,
    "SiT's velocity": lambda eps, x0, a, b: x0 - eps,
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize(("power", "std"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_another_prediction_taken_for_eps_is_refused(power: float, std: float, what: str) -> None:
    teacher = DdpmGaussian(power_spectrum(power, std), output=WRONG[what])
    # A velocity of structured data is nearly eps at t = 0.9: that one is told by what it draws.
    with pytest.raises(UserError, match=r"at t = 0\.9 the output has slope|the teacher's samples have std"):
        preflight(teacher, {"student": teacher}, UNGUIDED)


@pytest.mark.parametrize(("power", "std"), [(0.0, 1.0), (1.0, 1.0), (1.0, 0.5), (1.5, 1.0)])
def test_the_share_that_is_found_has_its_closed_form(power: float, std: float) -> None:
    """mean 1 / (1 + variance), at least 1 / (1 + mean variance); what it misses where sign and time are turned."""
    variances = power_spectrum(power, std)
    teacher = DdpmGaussian(variances)
    expected = float((1 / (1 + variances)).mean())
    assert expected >= 1 / (1 + std**2) - 1e-6
    assert convention_of(teacher).share == pytest.approx(expected, abs=0.01)
    assert convention_of(Reread(teacher, -1.0, turned=True)).share == pytest.approx(1 - expected, abs=0.01)
    t = torch.tensor(0.9)
    slope = (t * (t - (1 - t) * variances) / ((1 - t).square() * variances + t.square())).mean()
    assert convention_of(teacher).slope == pytest.approx(float(slope), abs=0.01)


@pytest.fixture(scope="module")
def shipped() -> SiT:
    return SiT.from_pretrained(asset("teacher")).eval()


def test_a_teacher_that_has_hardly_learned_is_told_so(shipped: SiT) -> None:
    """Not that its t is turned: an output near zero has a slope near zero, too."""
    torch.manual_seed(0)
    young = SiT(shipped.config)
    with pytest.raises(UserError, match=r"its output is 0 of the size of the noise.*it has hardly learned"):
        preflight(young, {}, TeacherConfig())
    with torch.no_grad():
        young.final_layer.linear.weight.normal_(std=0.02)
    assert "train it longer" in convention_of(young).complaint


def test_the_shipped_teacher_passes(shipped: SiT) -> None:
    assert 0.5 < preflight(shipped, {"student": copy.deepcopy(shipped)}, TeacherConfig()) < 0.9


@pytest.mark.parametrize(
    ("sign", "turned", "guess"),
    [
        (-1.0, False, "both mean the opposite sign"),
        (1.0, True, "the opposite direction of t"),
        (-1.0, True, "opposite sign and direction of t"),
    ],
)
def test_the_shipped_teacher_read_the_wrong_way_is_refused(shipped: SiT, sign: float, turned: bool, guess: str) -> None:
    teacher = Reread(shipped, sign, turned=turned)
    with pytest.raises(UserError, match=guess):
        preflight(teacher, {"student": teacher}, TeacherConfig())
