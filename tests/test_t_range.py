"""A teacher that is undefined at t = 0 and t = 1, as one of DDPM's schedule is, through the whole pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dar import RoutingConfig, SiT
from distill.cli import main
from distill.sampling.flow import velocity_to_x0
from distill.sampling.schedules import t_grid
from tests.conftest import perturbed, tiny_config
from tests.test_cli import QUICK, run_config, write_idx


@pytest.fixture
def ddpm(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = SiT(tiny_config(prediction="ddpm_eps", input_size=28, patch_size=7, num_classes=10))
    perturbed(model)
    model.save_pretrained(tmp_path / "ddpm")
    return tmp_path / "ddpm"


def test_a_grid_within_a_range() -> None:
    grid = t_grid(4, t_range=(0.3, 0.9))
    torch.testing.assert_close(grid, torch.tensor([0.9, 0.75, 0.5, 0.3, 0.0]))
    assert torch.equal(t_grid(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def test_its_x0_is_not_that_of_a_rounded_head() -> None:
    """x0 = (x_t - t eps) / (1 - t): at the largest t, what eps is rounded by comes back 158 times as large."""
    torch.manual_seed(0)
    model = SiT(tiny_config(prediction="ddpm_eps"))
    perturbed(model)
    x_t, t, y = torch.randn(64, 1, 8, 8), torch.full((64,), model.t_range[1]), torch.arange(64) % 3

    @torch.no_grad()
    def x0(low_precision: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            return velocity_to_x0(x_t, model(x_t, t, y), t)

    exact, ours = x0(False), x0(True)
    model._head = model.final_layer.forward  # as autocast would have it
    rounded = x0(True)
    assert ours.dtype == torch.float32
    assert (ours - exact).square().mean() < 0.5 * (rounded - exact).square().mean()


def test_the_head_is_compiled_in_one_graph_under_autocast() -> None:
    model = SiT(tiny_config(routing=RoutingConfig(kind="residual")))
    perturbed(model)
    inputs = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(*inputs), model(*inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)


def test_a_model_in_low_precision_has_its_head_in_it(tiny_model: SiT) -> None:
    narrow = tiny_model.to(torch.bfloat16)
    x_t, t, y = torch.randn(2, 1, 8, 8).bfloat16(), torch.tensor([0.2, 0.9]).bfloat16(), torch.tensor([0, 3])
    assert narrow(x_t, t, y).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert narrow(x_t, t, y).dtype == torch.bfloat16


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_it_is_sampled_within_its_range(ddpm: Path, tmp_path: Path, solver: str) -> None:
    arguments = ["--num-images", "4", "--steps", "200", "--solver", solver]
    assert main(["sample", str(ddpm), "--output", str(tmp_path / "drawn"), *arguments]) == 0


def test_it_is_distilled_within_its_range(ddpm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up network fails the preflight, as it should; everything behind that must know the range."""
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)
    config = run_config(tmp_path, f"teacher: {{path: {ddpm}}}\ndmd: {{t_min: 0.0, t_max: 1.0}}")
    assert main(["run", config, *QUICK, "train.batch_size=64", "student.optim.lr=1e-9"]) == 0
    t_list = json.loads((tmp_path / "run" / "student" / "sampler.json").read_text())["t_list"]
    assert t_list[0] == pytest.approx(SiT.from_pretrained(ddpm).t_range[1], abs=1e-6)
    assert main(["sample", str(tmp_path / "run"), "--output", str(tmp_path / "drawn"), "--num-images", "4"]) == 0


def test_it_is_fine_tuned_and_diagnosed_within_its_range(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SiT(tiny_config(prediction="ddpm_eps", num_classes=2))
    perturbed(model)
    model.save_pretrained(tmp_path / "ddpm")
    data = write_idx(tmp_path / "data")
    config = tmp_path / "fine_tune.yaml"
    config.write_text(
        f"output: {tmp_path / 'run'}\nstart: {{path: {tmp_path / 'ddpm'}}}\ndata: {{name: idx, path: {data}}}\n"
        "flow_matching: {t_sampler: uniform}\noptim: {lr: 1.0e-9}\n"
        "train: {steps: 20, batch_size: 8, grid_every: 20, save_every: 20}\ngrid_steps: 150\n"
    )
    assert main(["train", str(config)]) == 0
    arguments = ["--data", f"idx:{data}", "--num-images", "8", "--output", str(tmp_path / "page")]
    assert main(["diagnose", str(tmp_path / "run"), *arguments]) == 0
