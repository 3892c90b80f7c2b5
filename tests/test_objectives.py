"""The registry of objectives, with an adversarial one as a worked example: a discriminator of its own, and data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config import OptimConfig, RunConfig, config_to_yaml, load_config
from distill.config.checks import at_least
from distill.data.base import shuffled_indices
from distill.models import Backbone
from distill.objectives import OBJECTIVES, Network, Setting, Turn, register
from distill.objectives.monitor import reduced
from distill.sampling import Denoiser, few_step_sample
from distill.seeds import generator_for
from distill.training.batches import local_rows, rank_noise, rank_slice
from distill.training.run_log import read_log
from distill.verbs.plan import plan
from distill.verbs.run import run
from tests.test_cli import refused

# --- the worked example ------------------------------------------------------------------------------------------


@dataclass
class AdversarialConfig:
    """width: channels of the discriminator."""

    name: str = "adversarial"
    width: int = 4
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))

    def __post_init__(self) -> None:
        at_least(self, "objective", 1, "width")


def discriminator(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=4), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1), nn.Flatten(0)
    )


def make_adversarial() -> type:
    @register("adversarial")
    class Adversarial:
        """Non-saturating: the discriminator tells data from the student's samples, the student its last step from data.

        arXiv:1406.2661: D minimises softplus(-D(x0)) + softplus(D(x0_gen)), the student softplus(-D(x0_gen)).
        """

        title = "Adversarial distillation"
        Config = AdversarialConfig
        needs_data = True
        headline: ClassVar = {"fooled": "fooled"}

        def __init__(self, setting: Setting) -> None:
            self.setting = setting
            accumulation = setting.config.train.accumulation
            self.judging = setting.networks["discriminator"].on(self._judged, accumulation)
            self.fooling = setting.student.on(self._fooled, accumulation)
            self.fooled = Fooled(setting)

        @classmethod
        def networks(cls, config: RunConfig, teacher: Backbone) -> dict[str, Network]:
            settings = cast(AdversarialConfig, config.objective)
            network = discriminator(teacher.sample_shape[0], settings.width)
            network(torch.zeros(1, *teacher.sample_shape, device=next(teacher.parameters()).device))
            return {"discriminator": Network(network, settings.optim, config.train.steps)}

        @classmethod
        def turns(cls, config: RunConfig) -> list[Turn]:
            batch = config.train.batch_size
            return [Turn("student", 1, 0, batch * config.student.steps, batch, 0)]

        def stateful(self) -> list[Fooled]:
            return [self.fooled]

        def update(self, step: int, *, log_now: bool) -> dict[str, float]:
            setting, loop = self.setting, self.setting.config.train
            generator = generator_for(loop.seed, "adversarial", step)
            y = rank_slice(setting.condition.random(loop.batch_size, generator), setting.accelerator)
            noise = torch.randn(len(setting.t_list), loop.batch_size, *setting.sample_shape, generator=generator)
            noise = rank_slice(noise, setting.accelerator, dim=1)
            assert setting.data is not None
            indices = shuffled_indices(len(setting.data), loop.batch_size, step, loop.seed)
            local = local_rows(indices, setting.accelerator)
            x0, _ = setting.data.batch(local, rank_noise(generator, setting.accelerator))
            drawn = few_step_sample(Denoiser(setting.student.predict, setting.condition), noise, y, setting.t_list)
            values, (judged,) = self.judging(step, x0, drawn)
            self.fooled.add(judged)
            found, _ = self.fooling(step, noise[0], y)
            figures = {"discriminator/loss": values["loss"], "student/loss": found["loss"]}
            return figures | (self.fooled.take() if log_now else {})

        def _judged(self, x0: Tensor, drawn: Tensor) -> tuple[Tensor, tuple[Tensor]]:
            judge = self.setting.networks["discriminator"].model
            on_data, on_drawn = judge(x0), judge(drawn)
            return F.softplus(-on_data).mean() + F.softplus(on_drawn).mean(), (on_drawn,)

        def _fooled(self, noise: Tensor, y: Tensor) -> tuple[Tensor, tuple[()]]:
            student, judge = self.setting.student.model, self.setting.networks["discriminator"].module
            t = self.setting.t_list[:1].expand(len(noise))
            x_in = t[0] * noise
            return F.softplus(-judge(x_in - t[0] * student(x_in, t, y))).mean(), ()

    return Adversarial


class Fooled:
    """The share of the student's samples that the discriminator took for data since the last look."""

    def __init__(self, setting: Setting) -> None:
        self.accelerator = setting.accelerator
        self.counts = torch.zeros(2)

    def add(self, judged: Tensor) -> None:
        self.counts += torch.tensor([float((judged > 0).sum()), len(judged)])

    def take(self) -> dict[str, float]:
        fooled, count = reduced(self.counts, self.accelerator).tolist()
        self.counts = torch.zeros(2)
        return {"fooled": fooled / max(count, 1)}

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts = state["counts"]


# --- what it is held to ------------------------------------------------------------------------------------------


@pytest.fixture
def adversarial() -> Iterator[type]:
    yield make_adversarial()
    del OBJECTIVES["adversarial"]


@pytest.fixture
def config(tmp_path: Path) -> dict:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", images=rng.integers(0, 255, (16, 28, 28), np.uint8), labels=np.arange(16) % 10)
    return {
        "output": str(tmp_path / "run"),
        "teacher": {"steps": 2},
        "student": {"steps": 2},
        "objective": {"name": "adversarial", "width": 2},
        "data": {"name": "npz", "path": str(tmp_path / "data.npz")},
        "train": {"steps": 3, "batch_size": 4, "accumulation": 2, "log_every": 1, "save_every": 1},
        "evaluate": {"num_images": 10, "bootstrap": 2, "teacher_reference": None},
    }


def test_another_objective_goes_through_run(config: dict, adversarial: type, tmp_path: Path) -> None:
    done = run(config)
    assert done is not None and "Adversarial distillation, 3 updates" in done.report.read_text()
    log = read_log(tmp_path / "run")
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all({"discriminator/loss", "student/loss", "fooled"} <= set(record) for record in log)
    assert "width: 2" in (tmp_path / "run" / "config.yaml").read_text()
    weights = sorted((tmp_path / "run" / "checkpoints" / "step_00000003").glob("model*.safetensors"))
    assert len(weights) == 2  # the student's and the discriminator's


@pytest.mark.usefixtures("without_pages")
def test_its_networks_and_figures_are_resumed(config: dict, adversarial: type, tmp_path: Path) -> None:
    config["train"]["steps"] = 2
    run({**config, "output": str(tmp_path / "whole")})
    whole = read_log(tmp_path / "whole")
    config = {**config, "output": str(tmp_path / "parts")}
    run(config)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_00000002")
    run(config, resume=True)
    for a, b in zip(whole, read_log(tmp_path / "parts"), strict=True):
        a.pop("elapsed_s"), b.pop("elapsed_s")
        assert a == b


def test_its_own_fields_are_checked_and_named(config: dict, adversarial: type, tmp_path: Path, capsys) -> None:
    def refusal(**changes: object) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({**config, **changes}))
        return refused(capsys, "run", str(path))

    assert "objective.width must be at least 1; got 0" in refusal(objective={"name": "adversarial", "width": 0})
    assert "did you mean objective.width?" in refusal(objective={"name": "adversarial", "widht": 1})
    assert "unknown key objective.rollout" in refusal(objective={"name": "adversarial", "rollout": "every_step"})
    wrong = refusal(objective={"name": "gan"})
    assert "objective.name must be one of dmd, adversarial; got 'gan'" in wrong
    assert "objective.name = adversarial learns from data: give a section data" in refusal(data=None)


def test_the_plan_counts_its_networks(config: dict, adversarial: type) -> None:
    found = plan(config)
    assert [role.name for role in found.roles] == ["teacher", "student", "discriminator", "EMA"]
    assert [phase.name for phase in found.phases if "update" in phase.name] == ["student's update"]


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="objective 'dmd' is registered already"):
        register("dmd")(OBJECTIVES["dmd"])


def test_sections_of_earlier_configurations_are_read(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("output: x\nfake_score: {updates: 3, optim: {lr: 1e-5}}\ndmd: {rollout: every_step}\n")
    new.write_text("output: x\nobjective: {rollout: every_step, fake_score: {updates: 3, optim: {lr: 1e-5}}}\n")
    found, expected = load_config(RunConfig, old), load_config(RunConfig, new)
    assert found == expected and found.objective.rollout == "every_step"
    assert load_config(RunConfig, new, ["fake_score.updates=4"]).objective.fake_score.updates == 4
    assert load_config(RunConfig, old, ["objective.t_min=0.1", "dmd.t_max=0.9"]).objective.t_max == 0.9
    written = tmp_path / "written.yaml"
    written.write_text(config_to_yaml(found))
    assert load_config(RunConfig, written) == found
