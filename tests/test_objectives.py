"""The registry of objectives, with an adversarial one as a worked example: a discriminator of its own, and data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config import DataConfig, OptimConfig, TConfig, build_config, config_to_yaml, load_config
from distill.config.checks import at_least
from distill.errors import UserError
from distill.models import Backbone
from distill.objectives import OBJECTIVES, Cost, Network, Objective, RunConfig, Samples, Setting, register
from distill.objectives.critic import FakeScoreConfig
from distill.objectives.data_rows import data_rows
from distill.objectives.decoupled_dmd import DecoupledDmdConfig
from distill.objectives.discriminator import DiscriminatorConfig
from distill.objectives.diversity import DiversityConfig
from distill.objectives.dmd import DmdConfig
from distill.objectives.f_distill import FDistillConfig
from distill.objectives.gan import GanConfig
from distill.objectives.mixture import title_of
from distill.objectives.monitor import reduced
from distill.objectives.preference import PreferenceConfig
from distill.objectives.regression import RegressionConfig
from distill.seeds import generator_for
from distill.training.run_log import read_log
from distill.verbs.plan import plan
from distill.verbs.run import run
from tests.conftest import without_time
from tests.test_cli import refused

# --- the worked example ------------------------------------------------------------------------------------------


@dataclass
class AdversarialConfig:
    """width: channels of the discriminator."""

    name: str = "adversarial"
    weight: float = 1.0
    width: int = 4
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3))

    def __post_init__(self) -> None:
        at_least(self, "objective", 1, "width")


def judge(channels: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=4), nn.SiLU(), nn.Flatten(), nn.LazyLinear(1), nn.Flatten(0)
    )


def make_adversarial() -> type:
    @register("adversarial")
    class Adversarial(Objective):
        """Non-saturating: a network on pixels tells data from the student's samples, which are to pass for data.

        arXiv:1406.2661: D minimises softplus(-D(x0)) + softplus(D(x0_gen)), the student softplus(-D(x0_gen)).
        """

        title = "Adversarial distillation"
        Config = AdversarialConfig
        needs_data = True
        on_samples = True
        headline: ClassVar = {"fooled": "fooled"}

        def __init__(self, setting: Setting, config: AdversarialConfig) -> None:
            super().__init__(setting, config)
            self.judge = setting.networks["judge"]
            self.judging = self.judge.on(self._judged, setting.config.train.accumulation)
            self.fooled = Fooled(setting)

        @classmethod
        def networks(cls, config: RunConfig, own: AdversarialConfig, teacher: Backbone) -> dict[str, Network]:
            network = judge(teacher.sample_shape[0], own.width)
            network(torch.zeros(1, *teacher.sample_shape, device=next(teacher.parameters()).device))
            return {"judge": Network(network, own.optim, config.train.steps)}

        @classmethod
        def cost(cls, config: RunConfig, own: AdversarialConfig) -> Cost:
            return Cost()

        def stateful(self) -> list[Fooled]:
            return [self.fooled]

        def teach(self, step: int, *, log_now: bool) -> dict[str, Tensor]:
            generator = generator_for(self.setting.config.train.seed, "judge", step)
            inputs = self.setting.rollout.inputs(generator)
            x0, _ = data_rows(self.setting, step, len(inputs.x_in), generator)
            values, (judged,) = self.judging(step, x0, self.setting.rollout.finished(inputs))
            self.fooled.add(judged)
            return {"judge/loss": values["loss"]}

        def batch(self, step: int, num_rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
            return ()

        def loss(self, samples: Samples | None, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            assert samples is not None
            return F.softplus(-self.judge.module(samples.x0)).mean(), ()

        def figures(self, rows: Sequence[Tensor], *, log_now: bool) -> dict[str, float]:
            return self.fooled.take() if log_now else {}

        def _judged(self, x0: Tensor, drawn: Tensor) -> tuple[Tensor, tuple[Tensor]]:
            on_data, on_drawn = self.judge.model(x0), self.judge.model(drawn)
            return F.softplus(-on_data).mean() + F.softplus(on_drawn).mean(), (on_drawn,)

    return Adversarial


class Fooled:
    """The share of the student's samples that were taken for data since the last look."""

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


@pytest.mark.usefixtures("small_teacher")
def test_another_objective_goes_through_run(config: dict, adversarial: type, tmp_path: Path) -> None:
    done = run(config)
    assert done is not None and "Adversarial distillation, 3 updates" in done.report.read_text()
    log = read_log(tmp_path / "run")
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all({"judge/loss", "student/loss", "fooled"} <= set(record) for record in log)
    assert "width: 2" in (tmp_path / "run" / "config.yaml").read_text()
    weights = sorted((tmp_path / "run" / "checkpoints" / "step_00000003").glob("model*.safetensors"))
    assert len(weights) == 2  # the student's and the judge's


@pytest.mark.usefixtures("small_teacher")
def test_its_networks_and_figures_are_resumed(config: dict, adversarial: type, tmp_path: Path) -> None:
    config["train"]["steps"] = 2
    config["evaluate"] = {"num_images": 0}
    run({**config, "output": str(tmp_path / "whole")})
    whole = without_time(tmp_path / "whole")
    config = {**config, "output": str(tmp_path / "parts")}
    run(config)
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_00000002")
    run(config, resume=True)
    assert without_time(tmp_path / "parts") == whole


def test_its_own_fields_are_checked_and_named(config: dict, adversarial: type, tmp_path: Path, capsys) -> None:
    def refusal(**changes: object) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(json.dumps({**config, **changes}))
        return refused(capsys, "run", str(path))

    assert "objective.width must be at least 1; got 0" in refusal(objective={"name": "adversarial", "width": 0})
    assert "did you mean objective.width?" in refusal(objective={"name": "adversarial", "widht": 1})
    wrong = refusal(objective={"name": "gann"})
    assert "objective.name must be one of dmd, " in wrong and wrong.endswith("adversarial; got 'gann'")
    assert "the objective adversarial learns from data: give a section data" in refusal(data=None)
    assert "mix.adversarial is objective.name, too; give it once" in refusal(mix={"adversarial": {}})
    assert "mix.gann is not known; mix takes dmd, " in refusal(mix={"gann": {}})
    assert "mix.gan.weight must be at least 0; got -1" in refusal(mix={"gan": {"weight": -1}})
    assert "did you mean mix.gan.weight?" in refusal(mix={"gan": {"wieght": 1}})
    assert "mix.gan is a section with keys of its own; got 3" in refusal(mix={"gan": 3})


def test_another_objective_by_an_override_leaves_the_fields_of_the_first(tmp_path: Path, caplog) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output: x\nobjective: {weight: 2.0, t: {low: 0.1}, fake_score: {updates: 3}}\n")
    with caplog.at_level("INFO", logger="distill"):
        config = load_config(RunConfig, path, ["objective.name=flow_matching"])
    assert config.objective.weight == 2.0 and config.objective.t.low == 0.1
    assert caplog.messages == ["objective.name = flow_matching does not take fake_score, which was for dmd"]
    kept = load_config(RunConfig, path, ["objective.name=decoupled_dmd", "objective.weight=3"])
    assert kept.objective.fake_score.updates == 3 and kept.objective.weight == 3.0


def test_the_plan_counts_its_networks(config: dict, adversarial: type) -> None:
    found = plan(config)
    assert [role.name for role in found.roles] == ["teacher", "student", "judge", "EMA"]
    assert [phase.name for phase in found.phases if "update" in phase.name] == ["student's update"]


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="objective 'dmd' is registered already"):
        register("dmd")(OBJECTIVES["dmd"])


def test_sections_of_earlier_configurations_are_read(tmp_path: Path) -> None:
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text("output: x\nfake_score: {updates: 3, optim: {lr: 1e-5}}\ndmd: {rollout: every_step}\n")
    new.write_text(
        "output: x\nstudent: {rollout: every_step}\nobjective: {fake_score: {updates: 3, optim: {lr: 1e-5}}}\n"
    )
    found, expected = load_config(RunConfig, old), load_config(RunConfig, new)
    assert found == expected and found.student.rollout == "every_step"
    assert load_config(RunConfig, new, ["fake_score.updates=4"]).objective.fake_score.updates == 4
    assert load_config(RunConfig, old, ["objective.t_min=0.1", "dmd.t_max=0.9"]).objective.t == TConfig(
        low=0.1, high=0.9
    )
    written = tmp_path / "written.yaml"
    written.write_text(config_to_yaml(found))
    assert load_config(RunConfig, written) == found


NOISE = DataConfig("npz", "data.npz")
NEEDED: dict[type, dict[str, Any]] = {
    RegressionConfig: {"pairs": "folder"},
    PreferenceConfig: {"preferred": NOISE, "rejected": NOISE},
}


@pytest.mark.parametrize(
    ("config", "name", "allowed", "refused"),
    [
        (DmdConfig, "weight", (0.0,), (-0.01,)),
        (DmdConfig, "critic_share", (0.0, 1.0), (-0.01, 1.01)),
        (DmdConfig, "critic_share_until", (1,), (0,)),
        (FakeScoreConfig, "updates", (1,), (0,)),
        (FakeScoreConfig, "warmup_updates", (0,), (-1,)),
        (DecoupledDmdConfig, "guidance_shift", (1e-3,), (0.0,)),
        (DiscriminatorConfig, "features", ("teacher", "fake_score"), ("student",)),
        (DiscriminatorConfig, "updates", (1,), (0,)),
        (DiscriminatorConfig, "r1_weight", (0.0,), (-0.01,)),
        (DiscriminatorConfig, "r1_std", (0.0,), (-0.01,)),
        (DiversityConfig, "first_weight", (0.0,), (-0.01,)),
        (DiversityConfig, "teacher_steps", (1,), (0,)),
        (FDistillConfig, "divergence", ("reverse_kl", "jeffreys"), ("kl",)),
        (FDistillConfig, "gan_weight", (0.0,), (-0.01,)),
        (PreferenceConfig, "beta", (0.0,), (-1.0,)),
        (RegressionConfig, "batch_size", (1, None), (0,)),
        (RegressionConfig, "distance", ("huber", "mse", "lpips"), ("l1",)),
        *((config, "weight", (0.0,), (-0.01,)) for config in (GanConfig, PreferenceConfig, RegressionConfig)),
        *(
            (config, "critic_share", (1.0,), (1.01,))
            for config in (DecoupledDmdConfig, DiversityConfig, FDistillConfig)
        ),
    ],
)
def test_limits_of_the_fields(config: type, name: str, allowed: tuple[Any, ...], refused: tuple[Any, ...]) -> None:
    for value in allowed:
        assert getattr(config(**{**NEEDED.get(config, {}), name: value}), name) == value
    for value in refused:
        with pytest.raises(UserError, match=rf"\.{name} must .*; got"):
            config(**{**NEEDED.get(config, {}), name: value})


@pytest.mark.parametrize("missing", ["pairs", "preferred", "rejected"])
def test_what_they_learn_from_must_be_named(missing: str) -> None:
    config = RegressionConfig if missing == "pairs" else PreferenceConfig
    with pytest.raises(UserError, match=rf"^objective\.{missing} must"):
        config(**{name: value for name, value in NEEDED[config].items() if name != missing})


def test_a_run_is_titled_by_all_that_it_learns_by() -> None:
    config = build_config(RunConfig, {"output": "out", "data": {"name": "npz", "path": "data.npz"}, "mix": {"gan": {}}})
    assert title_of(config) == "Distribution matching distillation + adversarial distillation"


def test_what_is_taken_where_nothing_is_said() -> None:
    """Of the papers, or said in docs: a run that names an objective alone is trained so."""
    dmd, gan, judge_of = DmdConfig(), GanConfig(), DiscriminatorConfig()
    assert (dmd.weight, dmd.t, dmd.critic_share, dmd.critic_share_until) == (1, TConfig(low=0.02, high=0.98), 0, 10_000)
    assert (dmd.fake_score.updates, dmd.fake_score.warmup_updates, dmd.fake_score.t) == (5, 0, TConfig())
    assert dmd.fake_score.knows_step and dmd.fake_score.optim == OptimConfig(lr=3e-4, betas=(0.0, 0.95))
    assert (gan.weight, gan.discriminator, FDistillConfig().gan_weight) == (3e-3, judge_of, 0)
    assert (judge_of.updates, judge_of.r1_weight, judge_of.r1_std) == (1, 0, 0.01)
    assert judge_of.blocks is None and judge_of.optim == OptimConfig(lr=1e-4, betas=(0.0, 0.99))
    assert (DiversityConfig().first_weight, DiversityConfig().teacher_steps) == (1, 5)
    shifted = TConfig(sampler="shifted", shift=3.0)
    decoupled = DecoupledDmdConfig()
    assert (decoupled.t, decoupled.fake_score.t, decoupled.guidance_shift) == (shifted, shifted, 3)
    assert PreferenceConfig(**NEEDED[PreferenceConfig]).beta == 2000
