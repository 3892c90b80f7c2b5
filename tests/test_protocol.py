"""The protocol of a backbone: who keeps to it, and that a wrong convention or a broken rule is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dar import RoutingConfig, SiT, SiTConfig, load_pretrained
from distill.conditions import condition_of
from distill.conformance.check import check_backbone, violations
from distill.conformance.conventions import convention_of
from distill.conformance.gaussian import GaussianClasses
from distill.objectives.task import DistillationTask
from distill.sampling.guidance import Denoiser
from tests.conftest import models_of, perturbed, tiny_config

STRIPES = torch.tensor([[1.0, 1.0, -1.0, -1.0]] * 4)
DATA = GaussianClasses(0.6 * torch.stack([STRIPES, STRIPES.T])[:, None], std=0.4)
CONFIG = SiTConfig(
    input_size=4, patch_size=2, in_channels=1, hidden_size=32, depth=1, num_heads=2, num_classes=2, gelu="none",
    routing=RoutingConfig(kind="residual"),
)  # fmt: skip

# What a network sees and is taught, as the authors of each family write it down.
Native = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]


def native_velocity(x0: Tensor, eps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.rand(len(x0), generator=generator)
    return (1 - t)[:, None, None, None] * x0 + t[:, None, None, None] * eps, t, eps - x0


def native_sit(x0: Tensor, eps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """SiT: time runs from noise (0) to data (1)."""
    s = torch.rand(len(x0), generator=generator)
    return s[:, None, None, None] * x0 + (1 - s)[:, None, None, None] * eps, s, x0 - eps


def native_dit(x0: Tensor, eps: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """DiT: DDPM with a thousand steps."""
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    i = torch.randint(1000, (len(x0),), generator=generator)
    a_squared = kept[i].float()[:, None, None, None]
    return a_squared.sqrt() * x0 + (1 - a_squared).sqrt() * eps, i.float(), eps


@lru_cache
def trained(native: Native, routing: str) -> SiT:
    """A network taught `DATA` for 300 steps in its family's own terms; its raw output is what it was taught."""
    torch.manual_seed(0)
    network = SiT(replace(CONFIG, routing=RoutingConfig(kind=routing, chunk_size=2)))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, 300)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x0, y = DATA.draw(64, generator)
        y = torch.where(torch.rand(64, generator=generator) < 0.3, DATA.null_label, y)
        x, time, target = native(x0, torch.randn(x0.shape, generator=generator), generator)
        optimizer.zero_grad()
        (network(x, time, y) - target).square().mean().backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def converted(native: Native, file_format: str, folder: Path) -> SiT:
    """The same weights as a public file, read as one."""
    torch.save(trained(native, "residual").state_dict(), folder / "weights.pt")
    return load_pretrained(folder / "weights.pt", format=file_format, num_heads=CONFIG.num_heads)


BACKBONES: dict[str, Callable[[Path], nn.Module]] = {
    "SiT, plain": lambda _: trained(native_velocity, "residual"),
    "SiT, DAR": lambda _: trained(native_velocity, "dar"),
    "SiT's file": lambda folder: converted(native_sit, "sit", folder),
    "DiT's file": lambda folder: converted(native_dit, "dit", folder),
    "no SiT": lambda _: copy.deepcopy(DATA),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_it_keeps_to_the_protocol(name: str, tmp_path: Path) -> None:
    model = BACKBONES[name](tmp_path)
    check_backbone(model, load=type(model).from_pretrained, data=DATA)


@pytest.mark.parametrize("name", BACKBONES)
def test_x0_and_guidance_come_from_any_of_them(name: str, tmp_path: Path) -> None:
    """x0 of each class as the closed form has it, and guided away from the mixture's as far again."""
    model = BACKBONES[name](tmp_path)
    generator = torch.Generator().manual_seed(0)
    x0, y = DATA.draw(256, generator)
    t = torch.full((256,), 0.5)
    x_t = 0.5 * x0 + 0.5 * torch.randn(x0.shape, generator=generator)
    null = torch.full_like(y, DATA.null_label)
    with torch.no_grad():
        exact = {scale: Denoiser(DATA, condition_of(DATA), scale).x0(x_t, t, y) for scale in (1.0, 2.0)}
        expected = 2 * (x_t - 0.5 * DATA(x_t, t, y)) - (x_t - 0.5 * DATA(x_t, t, null))
        torch.testing.assert_close(exact[2.0], expected, rtol=1e-4, atol=1e-5)
        for scale, x0_exact in exact.items():
            found = Denoiser(model, condition_of(model), scale).x0(x_t, t, y)
            assert float((found - x0_exact).square().mean() / x0_exact.square().mean()) < 0.15


class Reread(nn.Module):
    """A backbone whose output or time is taken the wrong way round."""

    def __init__(self, model, sign: float = 1.0, *, turned: bool = False) -> None:
        super().__init__()
        self.model, self.sign, self.turned = model, sign, turned
        self.null_label, self.t_range, self.sample_shape = model.null_label, model.t_range, model.sample_shape
        self.gradient_checkpointing = False

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if not self.turned:
            return self.sign * self.model(x_t, t, y)
        return self.sign * self.model(x_t, (1 - t).clamp(*self.t_range), y)

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


READINGS = {"sign": (-1.0, False), "time": (1.0, True), "both": (-1.0, True)}
GUESSES = {"sign": "mean the opposite sign", "time": "opposite direction of t", "both": "opposite sign and direction"}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", BACKBONES)
def test_a_wrong_convention_is_caught(name: str, reading: str, tmp_path: Path) -> None:
    model = BACKBONES[name](tmp_path)
    sign, turned = READINGS[reading]

    def reread(inner) -> Reread:
        return Reread(inner, sign, turned=turned)

    found = list(violations(reread(model), lambda folder: reread(type(model).from_pretrained(folder)), DATA))
    for complaint in ("against the noise", "of a class the velocity differs", "of the null class the velocity differs"):
        assert any(complaint in line for line in found), complaint


@pytest.mark.parametrize("reading", READINGS)
def test_the_reading_is_named(reading: str) -> None:
    sign, turned = READINGS[reading]
    assert GUESSES[reading] in convention_of(Reread(DATA, sign, turned=turned)).complaint
    assert convention_of(DATA).complaint == ""


def test_unconverted_files_are_caught(tmp_path: Path) -> None:
    """The weights of SiT and DiT have the same names and shapes as ours: only their answers tell."""
    for native in (native_sit, native_dit):
        complaints = list(violations(trained(native, "residual"), SiT.from_pretrained, DATA))
        assert any("against the noise" in complaint for complaint in complaints)
    torch.save(trained(native_dit, "residual").state_dict(), tmp_path / "dit.pt")
    mistaken = load_pretrained(tmp_path / "dit.pt", format="sit", num_heads=CONFIG.num_heads)
    assert convention_of(mistaken).complaint


class Broken(GaussianClasses):
    """Breaks one rule at a time."""


class DropsLabels(Broken):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t, torch.full_like(y, self.null_label) if self.training else y)


class LooksAtOneTime(Broken):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t[:1].expand(len(t)), y)


class Narrow(Broken):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t, y).to(torch.bfloat16)


class Flat(Broken):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t, y).flatten(1)


class Detached(Broken):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t, y).detach() + 0 * x_t.requires_grad_()


class AnswersOutside(Broken):
    t_range = (0.0, 0.9)


class HasNoNull(Broken):
    """Its null class is class 0."""

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return super().forward(x_t, t, y % self.null_label)


class LosesItsWidth(Broken):
    def save_pretrained(self, folder: Path) -> None:
        GaussianClasses(self.means.detach(), 1.0).save_pretrained(folder)


class RangeBackwards(Broken):
    t_range = (0.9, 0.1)


RULES = {
    DropsLabels: "in training mode the velocity is another",
    LooksAtOneTime: "depends on the other rows",
    Narrow: "shape and type",
    Flat: "shape and type",
    Detached: "no gradient of the velocity reaches its parameters",
    AnswersOutside: "t = 0.95 lies outside t_range and is answered",
    HasNoNull: "of the null class the velocity differs",
    LosesItsWidth: "it gives other velocities",
    RangeBackwards: "the least t first",
}


@pytest.mark.parametrize("broken", RULES)
def test_a_broken_rule_is_named(broken: type[Broken]) -> None:
    model = broken(DATA.means.detach(), 0.4)
    with pytest.raises(ValueError, match=RULES[broken]):
        check_backbone(model, load=broken.from_pretrained, data=DATA)


def test_what_is_no_backbone_at_all() -> None:
    with pytest.raises(ValueError, match=r"must be an nn\.Module"):
        check_backbone(lambda x_t, t, y: x_t, load=GaussianClasses.from_pretrained)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has neither condition nor null_label"):
        check_backbone(nn.Linear(1, 1), load=GaussianClasses.from_pretrained)  # type: ignore[arg-type]


def test_untrained_weights_pass_without_data() -> None:
    for prediction in ("velocity", "reversed_velocity", "ddpm_eps"):
        model = SiT(tiny_config(prediction=prediction))
        perturbed(model)
        check_backbone(model, load=SiT.from_pretrained)


def test_a_backbone_that_is_no_sit_is_distilled(run_config, accelerator) -> None:
    """Teacher, student and critic of four numbers and a width; the student moves and everything stays finite."""
    roles = copy.deepcopy(DATA).requires_grad_(False), copy.deepcopy(DATA), copy.deepcopy(DATA)
    task = DistillationTask(run_config, models_of(run_config, roles), accelerator, teacher_std=0.7)
    values = task.update(0)
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values())
    assert not torch.equal(roles[1].means, DATA.means)


def test_the_closed_form_itself() -> None:
    """Against averages over the data: E[eps - x0 | x_t] of the mixture, by weights of the samples themselves."""
    generator = torch.Generator().manual_seed(0)
    data = GaussianClasses(torch.tensor([-1.0, 0.8]).view(2, 1, 1, 1), 0.3)
    x0, _ = data.draw(400_000, generator)
    x0 = x0.flatten()
    for t, x in ((0.3, 0.2), (0.5, -0.1), (0.8, 1.0)):
        eps = (x - (1 - t) * x0) / t
        weights = (-0.5 * eps.square()).softmax(0)
        expected = float((weights * (eps - x0)).sum())
        x_t = torch.full((1, 1, 1, 1), x)
        with torch.no_grad():
            found = float(data(x_t, torch.tensor([t]), torch.tensor([2])))
        assert found == pytest.approx(expected, rel=0.02, abs=0.01)
