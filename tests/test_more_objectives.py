"""Objectives beside plain distribution matching: against each other, against closed forms, and each through `run`."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from dar import SiT
from dar.checksums import CHECKSUMS_FILE, check_checksums
from dar.layers import Block
from distill.assets import EMBEDDED
from distill.config import build_config, plain_values
from distill.data.pairs import read_index, write_index
from distill.errors import UserError
from distill.files import locked
from distill.metrics.features import load_extractor
from distill.metrics.perceptual import EmbeddedLpips
from distill.objectives import OBJECTIVES, RunConfig, Samples, Turn
from distill.objectives.discriminator import Discriminator, DiscriminatorConfig, Head, Heads, blocks_of
from distill.objectives.dmd import sample_rows
from distill.objectives.f_distill import WEIGHTS, RunningMeans
from distill.objectives.mixture import turns_of
from distill.objectives.regression import distance_of
from distill.objectives.task import DistillationTask, build_models
from distill.sampling import interpolate, shift_t, unshift_t
from distill.verbs.run import load_data, run
from tests.conftest import critic, perturbed, tiny_config, without_time
from tests.gaussian_roles import gaussian_task

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of three updates from a model of a few thousand parameters, and data of its kind."""
    torch.manual_seed(0)
    perturbed(SiT(tiny_config()), std=0.15).save_pretrained(tmp_path / "base")
    for name, seed in (("data", 0), ("other", 1)):
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 8, 8, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(24) % 3)
    monkeypatch.setattr("distill.verbs.run.preflight", lambda *_: 1.0)  # noise is no sane sample
    return {
        "output": str(tmp_path / "run"),
        "teacher": {"path": str(tmp_path / "base"), "cfg_scale": 1.5},
        "student": {"steps": 2, "rollout": "every_step", "optim": {"lr": 1e-3}},
        "objective": {"name": "dmd", "fake_score": {"updates": 1}},
        "data": {"name": "npz", "path": str(tmp_path / "data.npz")},
        "train": {"steps": 3, "batch_size": 4, "accumulation": 2, "log_every": 1, "save_every": 1, "keep": 3},
        "evaluate": {"num_images": 0},
    }


def pairs_of(tmp_path: Path, *options: str) -> str:
    folder = str(tmp_path / "pairs")
    arguments = [str(tmp_path / "base"), folder, "--num", "12", "--steps", "1", "--batch-size", "5", *options]
    assert script("make_pairs").main(arguments) == 0
    return folder


def task_of(values: dict[str, Any]) -> DistillationTask:
    config = build_config(RunConfig, values)
    torch.manual_seed(0)
    models = build_models(config)
    return DistillationTask(config, models, Accelerator(cpu=True), 1.0, data=load_data(config))


def member(task: DistillationTask, name: str) -> Any:
    return task.objective.members[name]


def samples_of(task: DistillationTask, seed: int = 0) -> tuple[Samples, Tensor, Tensor]:
    """Samples that carry a gradient, and t and eps to noise them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (8, *task.objective.setting.sample_shape)
    x0, eps = (torch.randn(shape, generator=generator) for _ in range(2))
    steps = torch.arange(8) % len(task.t_list)
    return Samples(x0.requires_grad_(), torch.arange(8) % 3, steps), torch.rand(8, generator=generator), eps


# --- each through run --------------------------------------------------------------------------------------------

PREFERENCE = {"preferred": {"name": "npz", "path": "DATA"}, "rejected": {"name": "npz", "path": "OTHER"}}
RUNS: dict[str, dict[str, Any]] = {
    "decoupled_dmd": {"objective": {"name": "decoupled_dmd"}},
    "timestep_sharing": {"objective": {"name": "timestep_sharing"}},
    "f_distill": {"objective": {"name": "f_distill", "gan_weight": 0.01}},
    "gan": {"mix": {"gan": {"discriminator": {"r1_weight": 1.0, "features": "fake_score"}}}},
    "gan alone": {"objective": {"name": "gan"}},
    "regression, ode": {"mix": {"regression": {"pairs": "PAIRS"}}, "student": {"ode_steps": 2}},
    "regression alone": {"objective": {"name": "regression", "pairs": "PAIRS", "distance": "mse"}},
    "diversity": {"objective": {"name": "diversity", "teacher_steps": 2}, "student": {"ode_steps": 1}},
    "flow_matching alone": {"objective": {"name": "flow_matching"}},
    "preference": {"objective": {"name": "preference", **PREFERENCE}},
    "list, rescaled": {"student": {"t_list": [1.0, 0.4]}, "teacher": {"cfg_rescale": 0.7}},
    "shared": {"student": {"rollout": "shared"}, "mix": {"gan": {}}},
    "lora": {
        "roles": {"trainable": "lora", "lora_rank": 2},
        "objective": {"name": "dmd", "critic_share": 0.75, "critic_share_until": 2},
        "mix": {"gan": {}, "flow_matching": {}},
    },
    "started": {"student": {"start": "BASE"}},
}


def changed(values: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    names = {"DATA": "data.npz", "OTHER": "other.npz", "PAIRS": "pairs", "BASE": "base"}
    if "PAIRS" in str(changes):
        pairs_of(tmp_path)

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(item) for key, item in value.items()}
        return str(tmp_path / names[value]) if isinstance(value, str) and value in names else value

    result = {section: dict(value) if isinstance(value, dict) else value for section, value in values.items()}
    for section, change in named(changes).items():
        replaced = section == "objective" or change is None
        result[section] = change if replaced else result.get(section, {}) | change
    return result


@pytest.mark.parametrize("name", RUNS)
def test_each_goes_through_run_and_is_resumed(values: dict[str, Any], tmp_path: Path, name: str) -> None:
    config = changed(values, RUNS[name], tmp_path)
    whole = run(config)
    assert whole is not None
    log = without_time(whole.folder)
    run(config, from_step=1)
    assert without_time(whole.folder) == log
    assert all("student/loss" in record and np.isfinite(list(record.values())).all() for record in log)
    before, after = (SiT.from_pretrained(folder).state_dict() for folder in (tmp_path / "base", whole.student))
    assert any(not torch.equal(before[key], after[key]) for key in before)


UPDATES: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in RUNS.items() if name not in ("started", "lora")},
    "last step": {"student": {"steps": 3, "rollout": "last_step"}},
    "unguided": {"teacher": {"cfg_scale": 1.0}},
    "diversity, unguided": {
        "objective": {"name": "diversity", "teacher_steps": 3},
        "student": {"ode_steps": 1},
        "teacher": {"cfg_scale": 1.0},
    },
    "decoupled_dmd, unguided": {"objective": {"name": "decoupled_dmd"}, "teacher": {"cfg_scale": 1.0}},
}


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_asks_for_as_many_rows_as_the_plan_has(values: dict[str, Any], tmp_path: Path, name: str) -> None:
    """Rows through all blocks of all networks, also those that are asked for features of their first blocks."""
    config = changed(values, UPDATES[name], tmp_path)
    config["train"] = {"steps": 200, "batch_size": 4, "log_every": 100}
    config["objective"] = {**config["objective"], "weight": 1.0}
    task = task_of(config)
    task.update(4)  # what is made once
    rows: list[int] = []
    of_teacher: list[int] = []
    first: Any = task.objective.setting.teacher.model.blocks[0]

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        if isinstance(module, Block):
            rows.append(len(inputs[0]))
        if module is first:
            of_teacher.append(len(inputs[0]))

    watched = register_module_forward_hook(seen)
    try:
        task.update(5)
    finally:
        watched.remove()
    turns = turns_of(task.config)
    assert not any(turn.teacher_passes for turn in turns[:-1])  # only a student's pass is kept while teachers compute
    assert not any(turn.warmup for turn in turns if turn.role != "fake_score")
    if name in ("flow_matching alone", "regression alone"):  # their loss is of data: no sample is drawn
        assert turns == [Turn("student", 1, 0, 0, 4, 0)]
    if "fake_score" in task.objective.setting.networks:  # the teacher is asked for the student's samples
        assert max(of_teacher) == turns[-1].teacher_passes * sample_rows(task.config)
    assert sum(rows) / tiny_config().depth == sum(turn.per_update * (turn.passes + turn.rows) for turn in turns)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None, "mix": {"gan": {}}}, "the objective gan learns from data: give a section data"),
        ({"mix": {"decoupled_dmd": {}}}, "dmd and mix.decoupled_dmd do not mix: both train a network fake_score"),
        ({"mix": {"regression": {}}}, "mix.regression.pairs must name a folder of pairs"),
        ({"mix": {"regression": {"pairs": "nowhere"}}}, "nowhere holds no pairs"),
        ({"objective": {"name": "diversity"}}, "needs student.steps of at least 2 and student.ode_steps of at least 1"),
        ({"objective": {"name": "preference"}}, "objective.preferred must be a section"),
        ({"mix": {"gan": {"discriminator": {"blocks": [3]}}}}, r"blocks must be from 0 to 2, .*; got \[3\]"),
        (
            {"objective": {"name": "gan", "discriminator": {"features": "fake_score"}}},
            "discriminator.features = fake_score: gan trains none; take teacher",
        ),
        ({"student": {"steps": 2, "t_list": [1.0]}}, "student.t_list has 1 values; student.steps is 2"),
        ({"student": {"steps": 2, "t_list": [0.5, 1.0]}}, "student.t_list must fall from at most 1"),
        ({"student": {"steps": 2, "t_list": [1.0, 0.5], "shift": 3}}, "student.shift = 3 does not move"),
        ({"objective": {"t": {"settles_over": 5}}}, "objective.t.settles_over = 5 needs t.sampler shifted or beta"),
        ({"teacher": {"cfg_rescale": 2}}, r"teacher.cfg_rescale must lie in \[0, 1\]; got 2"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(
    values: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        task_of(changed(values, changes, tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "owner", "message"),
    [
        ("gan", "gan", "discriminator.features must be teacher; got fake_score"),
        ("preference", "preference", "the objective preference keeps a whole copy of the student; take DDP"),
        ("lora", "dmd", r"objective\.critic_share must be 0; got 0\.75"),
    ],
)
def test_what_is_not_done_in_shards_is_refused(
    values: dict[str, Any], tmp_path: Path, monkeypatch, name: str, owner: str, message: str
) -> None:
    ours = member(task_of(changed(values, RUNS[name], tmp_path)), owner)
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(UserError, match=f"^FSDP: {message}$"):
        type(ours)(ours.setting, ours.config)


def test_data_of_another_kind_are_refused_before_the_first_update(values: dict[str, Any], tmp_path: Path) -> None:
    values["mix"] = {"gan": {}}

    def refusal(images: np.ndarray, labels: np.ndarray, **changes: Any) -> str:
        np.savez(tmp_path / "data.npz", images=images, labels=labels)
        with pytest.raises(ValueError) as raised:
            run({**values, **changes})
        assert not (tmp_path / "run").exists()
        return str(raised.value)

    noise = np.random.default_rng(0).integers(0, 255, (24, 16, 16, 1), dtype=np.uint8)
    assert "has samples of shape (1, 16, 16); the model takes (1, 8, 8)" in refusal(noise, np.arange(24) % 3)
    assert "has 5 classes; the model is conditioned on 3 classes" in refusal(noise[:, :8, :8], np.arange(24) % 5)
    # An update makes samples at both steps of the list, and takes as many pictures.
    few = refusal(noise[:6, :8, :8], np.arange(6) % 3)
    assert "8 is larger than the data set (6 samples)" in few


def test_an_update_takes_no_pair_twice(values: dict[str, Any], tmp_path: Path) -> None:
    objective = {"name": "regression", "pairs": pairs_of(tmp_path), "batch_size": 14}
    with pytest.raises(UserError, match="holds 12 pairs; an update takes 14"):
        task_of({**values, "objective": objective})


def test_a_student_starts_as_another_model(values: dict[str, Any], tmp_path: Path) -> None:
    perturbed(SiT(tiny_config()), seed=5, std=0.2).save_pretrained(tmp_path / "other_model")
    values["student"]["start"] = str(tmp_path / "other_model")
    models = build_models(build_config(RunConfig, values))
    expected = SiT.from_pretrained(tmp_path / "other_model").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in models.student.state_dict().items())
    assert list(models.copies) == ["fake_score"]
    SiT(tiny_config(num_classes=2)).save_pretrained(tmp_path / "two")
    values["student"]["start"] = str(tmp_path / "two")
    with pytest.raises(UserError, match="has conditions 2 classes; the teacher has 3 classes"):
        build_models(build_config(RunConfig, values))


# --- decoupled_dmd -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
def test_decoupled_at_equal_t_and_noise_is_dmd(values: dict[str, Any], monkeypatch, cfg_scale: float) -> None:
    values["teacher"]["cfg_scale"] = cfg_scale
    plain = task_of(values)
    decoupled = task_of({**values, "objective": {"name": "decoupled_dmd", "fake_score": {"updates": 1}}})
    for task in (plain, decoupled):
        perturbed(critic(task).module, seed=3, std=0.2)
    ours = member(decoupled, "decoupled_dmd")
    samples, t, eps = samples_of(plain)
    monkeypatch.setattr(ours, "guided_t", lambda u, step: t)
    (expected,) = torch.autograd.grad(member(plain, "dmd").loss(samples, t, eps)[0], samples.x0)
    (found,) = torch.autograd.grad(ours.loss(samples, t, eps, torch.rand(8), eps)[0], samples.x0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_guidance_never_comes_from_more_noise_than_the_step_had(values: dict[str, Any]) -> None:
    values["student"] |= {"steps": 4}
    task = task_of({**values, "objective": {"name": "decoupled_dmd", "fake_score": {"updates": 1}}})
    ours, step = member(task, "decoupled_dmd"), torch.arange(4).repeat(500)
    t = ours.guided_t(torch.rand(2000), step)
    t_in = task.t_list[step]
    assert (t <= t_in + 1e-6).all() and (t[step == 3] > 0.2).any() and (t[step == 0] > 0.9).any()
    assert torch.allclose(ours.guided_t(torch.ones(2000), step), t_in)
    assert torch.allclose(unshift_t(shift_t(t, 3.0), 3.0), t, atol=1e-6)


# --- discriminator, gan, f_distill -------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "groups"), [(128, 32), (96, 16)])
def test_a_head_norms_in_32_groups_or_as_many_as_go_into_its_width(width: int, groups: int) -> None:
    assert Head(16, width).norm.num_groups == groups


def test_the_students_gradient_through_the_discriminator(values: dict[str, Any]) -> None:
    """By finite differences in float64, and nothing is left in heads, critic or teacher."""
    for features in ("teacher", "fake_score"):
        task = task_of({**values, "mix": {"gan": {"discriminator": {"features": features, "blocks": [1, 2]}}}})
        gan, setting = member(task, "gan"), task.objective.setting
        networks = [setting.teacher.model, *(learner.module for learner in setting.networks.values())]
        for network in networks:
            network.double()
        samples, t, eps = samples_of(task)
        x0, t, eps = samples.x0.detach().double().requires_grad_(), t.double(), eps.double()

        def loss(x0: Tensor, gan=gan, samples=samples, t=t, eps=eps) -> Tensor:
            return gan.loss(replace(samples, x0=x0), t, eps)[0]

        (gradient,) = torch.autograd.grad(loss(x0), x0)
        way, size = torch.randn(x0.shape, dtype=torch.float64), 1e-6
        with torch.no_grad():
            slope = (loss(x0 + size * way) - loss(x0 - size * way)) / (2 * size)
        assert float((gradient * way).sum()) == pytest.approx(float(slope), rel=1e-5, abs=1e-10)
        loss(x0).backward()
        assert all(p.grad is None for network in networks for p in network.parameters())
        assert any(p.requires_grad for p in networks[1].parameters())


def test_heads_read_the_middle_block_unless_told() -> None:
    for depth, middle in ((12, 6), (3, 1), (1, 1)):
        assert blocks_of(DiscriminatorConfig(), SimpleNamespace(blocks=range(depth))) == [middle]
    model = SimpleNamespace(blocks=range(2))
    assert blocks_of(DiscriminatorConfig(blocks=[0, 2]), model) == [0, 2]
    for blocks in ([-1], [0, 3], []):
        with pytest.raises(UserError, match=r"blocks must be from 0 to 2, .*; got \["):
            blocks_of(DiscriminatorConfig(blocks=blocks), model)


def test_the_loss_of_the_heads(values: dict[str, Any]) -> None:
    """softplus(D(samples)) + softplus(-D(data)) + w |D(data) - D(data + std n)|^2, each noised to t."""
    own = {"r1_weight": 3.0, "r1_std": 0.2}
    heads = member(task_of(values | {"mix": {"gan": {"discriminator": own}}}), "gan").discriminator
    perturbed(heads.learner.module, std=0.3)
    x0, eps, real, eps_real, nudge = torch.randn(5, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    t, y = torch.linspace(0.1, 0.9, 8), torch.arange(8) % 3
    loss, (on_real, on_fake) = heads._loss(x0, eps, t, y, real, eps_real, y.flip(0), nudge)
    x_real = interpolate(real, eps_real, t)
    fake, judged, nudged = (
        heads.logits(x_t, t, labels).detach()
        for x_t, labels in ((interpolate(x0, eps, t), y), (x_real, y.flip(0)), (x_real + 0.2 * nudge, y.flip(0)))
    )
    torch.testing.assert_close(on_real, judged)
    torch.testing.assert_close(on_fake, fake)
    expected = F.softplus(fake).mean() + F.softplus(-judged).mean() + 3 * (nudged - judged).square().mean()
    torch.testing.assert_close(loss.detach(), expected)
    assert (nudged - judged).square().mean() > 1e-4


def test_heads_come_to_tell_data_from_samples(values: dict[str, Any]) -> None:
    task = task_of({**values, "mix": {"gan": {"discriminator": {"optim": {"lr": 0.02}, "t": {"high": 0.3}}}}})
    judge: Discriminator = member(task, "gan").discriminator
    data = task.objective.setting.data
    assert data is not None
    first = judge.teach(0)
    for step in range(1, 60):
        last = judge.teach(step)
    assert float(last["discriminator/loss"]) < 0.5 * float(first["discriminator/loss"])
    assert float(last["discriminator/real"] + last["discriminator/fake"]) > 1.5


@pytest.mark.parametrize(("tokens", "width"), [(1, 6), (4, 8), (9, 3), (16, 64), (256, 32)])
def test_heads_read_maps_of_any_size(tokens: int, width: int) -> None:
    heads = Heads(2, tokens, width)
    features = [torch.randn(3, tokens, width, requires_grad=True) for _ in range(2)]
    logits = heads(*features)
    assert logits.shape == (3,) and all(head.conv1.out_channels == max(width // 2, 1) for head in heads.heads)
    logits.sum().backward()
    assert all(part.grad is not None and part.grad.abs().max() > 0 for part in features)


def test_f_distill_of_the_reverse_divergence_is_dmd(values: dict[str, Any]) -> None:
    plain = task_of(values)
    objective = {"name": "f_distill", "divergence": "reverse_kl", "fake_score": {"updates": 1}}
    ours = task_of({**values, "objective": objective})
    for task in (plain, ours):
        perturbed(critic(task).module, seed=3, std=0.2)
    samples, t, eps = samples_of(plain)
    (expected,) = torch.autograd.grad(member(plain, "dmd").loss(samples, t, eps)[0], samples.x0)
    (found,) = torch.autograd.grad(member(ours, "f_distill").loss(samples, t, eps)[0], samples.x0)
    assert torch.equal(found, expected)


def test_f_distill_weighs_samples_by_the_ratio(values: dict[str, Any], monkeypatch) -> None:
    objective = {"name": "f_distill", "divergence": "forward_kl", "fake_score": {"updates": 1}}
    task = task_of({**values, "objective": objective})
    ours = member(task, "f_distill")
    logits = torch.tensor([-9.0, -4.5, -1.0, 0.0, 1.0, 2.0, 4.5, 9.0])
    monkeypatch.setattr(ours.discriminator, "logits", lambda *_: logits)
    perturbed(critic(task).module, seed=3, std=0.2)
    samples, t, eps = samples_of(task)
    (found,) = torch.autograd.grad(ours.loss(samples, t, eps)[0], samples.x0)
    plain = member(task_of(values), "dmd")
    plain.fake_score = ours.fake_score
    (unweighed,) = torch.autograd.grad(plain.loss(samples, t, eps)[0], samples.x0)
    torch.testing.assert_close(found, unweighed * logits.clamp(-4, 4).exp().view(8, 1, 1, 1), rtol=1e-5, atol=0)
    losses = [ours.loss(samples, t, eps)[0].detach()]
    ours.config = replace(ours.config, gan_weight=0.5)
    losses.append(ours.loss(samples, t, eps)[0].detach())
    torch.testing.assert_close(losses[1] - losses[0], 0.5 * F.softplus(-logits).mean())


def test_weights_of_the_divergences() -> None:
    r = torch.tensor([0.25, 1.0, 4.0])
    found = {name: h(r).tolist() for name, h in WEIGHTS.items()}
    assert found["reverse_kl"] == [1, 1, 1] and found["forward_kl"] == [0.25, 1, 4]
    assert found["jensen_shannon"] == pytest.approx([0.2, 0.5, 0.8]) and found["hellinger"] == [0.5, 1, 2]
    assert found["jeffreys"] == [1.25, 2, 5]


def test_running_means_make_weights_one_on_average() -> None:
    means = RunningMeans(SimpleNamespace(accelerator=Accelerator(cpu=True)))  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        t = torch.rand(256, generator=generator)
        means.add((1 + 3 * t) * torch.rand(256, generator=generator), t)
    t = torch.rand(20_000, generator=generator)
    h = means.normalised((1 + 3 * t) * torch.rand(20_000, generator=generator), t)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        assert float(h[(t >= low) & (t < low + 0.2)].mean()) == pytest.approx(1, abs=0.05)
    other = RunningMeans(SimpleNamespace(accelerator=Accelerator(cpu=True)))  # pyright: ignore[reportArgumentType]
    other.load_state_dict(means.state_dict())
    assert torch.equal(other.normalised(h, t), means.normalised(h, t))


# --- regression --------------------------------------------------------------------------------------------------


def test_regression_is_zero_at_the_teacher(values: dict[str, Any], tmp_path: Path) -> None:
    """Pairs of one Euler step are what the student, a copy of the teacher, predicts from the same noise."""
    values["teacher"]["cfg_scale"] = 1.0
    pairs = pairs_of(tmp_path, "--cfg-scale", "1")
    task = task_of({**values, "objective": {"name": "regression", "pairs": pairs, "distance": "mse"}})
    ours = member(task, "regression")
    batch = ours.batch(0, 0, torch.Generator())
    assert float(ours.loss(None, *batch)[0].detach()) < 1e-6  # x0 is kept in float16
    perturbed(task.student.module, seed=7)
    assert float(ours.loss(None, *batch)[0].detach()) > 1e-3


def test_lpips_is_of_grey_and_coloured_pictures(monkeypatch) -> None:
    """Latents are no pictures."""

    def distance(channels: int, path: str = "a/teacher") -> Any:
        config = SimpleNamespace(teacher=SimpleNamespace(path=path))
        setting = SimpleNamespace(sample_shape=(channels, 28, 28), accelerator=Accelerator(cpu=True), config=config)
        return distance_of("lpips", cast(Any, setting))

    def missing(*_: object) -> None:
        raise FileNotFoundError("no AlexNet")

    monkeypatch.setattr("distill.metrics.perceptual.find_alexnet", missing)
    a, b = torch.rand(2, 4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = EmbeddedLpips(load_extractor(EMBEDDED)).distance(a, b).mean()
    torch.testing.assert_close(distance(1, EMBEDDED)(a, b), expected)
    for channels in (1, 3):
        with pytest.raises(UserError, match="distance = lpips: no AlexNet"):
            distance(channels)
    for channels in (2, 4):
        with pytest.raises(UserError, match=f"lpips is of images; the samples have {channels} channels"):
            distance(channels)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cfg_scale", None, "cfg_scale must be a number; got None"),
        ("seed", True, "seed must be a whole number; got True"),
        ("num", 0, "num must be at least 1; got 0"),
        ("teacher", ..., "it lacks teacher, a text"),
    ],
)
def test_an_index_of_pairs_is_checked(tmp_path: Path, name: str, value: Any, message: str) -> None:
    index = {"teacher": "0", "sampler": "s", "cfg_scale": 1, "seed": 0, "num": 1, "sample_shape": [1]}
    write_index(tmp_path, index)
    assert read_index(tmp_path)["cfg_scale"] == 1
    write_index(tmp_path, {key: said for key, said in {**index, name: value}.items() if said is not ...})
    with pytest.raises(UserError, match=rf"pairs\.json is damaged: {message}$"):
        read_index(tmp_path)


def test_pairs_are_made_once_and_of_one_teacher(values: dict[str, Any], tmp_path: Path, capsys, monkeypatch) -> None:
    made = script("make_pairs")
    monkeypatch.setattr("distill.data.pairs.SHARD", 5)
    monkeypatch.setattr(made, "SHARD", 5)
    other = [str(tmp_path / "base"), str(tmp_path / "few"), "--num", "12", "--steps", "1"]
    assert made.main(other) == 0
    files = sorted((tmp_path / "few").glob("*.safetensors"))
    assert len(files) == 3
    kept, missing = files[0].stat().st_mtime_ns, files[1].read_bytes()
    files[1].unlink()
    config = {**values, "objective": {"name": "regression", "pairs": str(tmp_path / "few")}}
    with pytest.raises(UserError, match=r"lacks 1 of its files, pairs_00001\.safetensors first"):
        task_of(config)
    assert made.main(other) == 0
    assert files[0].stat().st_mtime_ns == kept and files[1].read_bytes() == missing
    check_checksums(tmp_path / "few")
    with locked(tmp_path / "few"):
        assert made.main(other) == 2 and "is being written by process" in capsys.readouterr().err
    assert made.main([*other, "--seed", "2"]) == 2 and "holds pairs of another seed: 1" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"was drawn at cfg_scale 1\.5; teacher\.cfg_scale is 3"):
        task_of({**config, "teacher": {**values["teacher"], "cfg_scale": 3.0}})
    third = files[2].read_bytes()
    files[2].write_bytes(b"no")
    with pytest.raises(ValueError, match=r"pairs_00002\.safetensors is not as it was written"):
        task_of(config)
    sums = tmp_path / "few" / CHECKSUMS_FILE
    whole = sums.read_bytes()
    sums.unlink()
    with pytest.raises(UserError, match=r"pairs_00002\.safetensors is damaged"):
        task_of(config)
    sums.write_bytes(whole)
    assert made.main(other) == 0 and sums.read_bytes() == whole  # what is there is not vouched for anew
    files[2].write_bytes(third)
    perturbed(SiT(tiny_config()), seed=9).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match="holds pairs of another teacher"):
        task_of(config)


# --- diversity, timestep_sharing, flow_matching, preference ------------------------------------------------------


def test_the_average_velocity_of_a_gaussian() -> None:
    """Along the ODE of N(m, s^2), x_t = (1-t) m + sqrt((1-t)^2 s^2 + t^2) eps; fine steps of the solver come to it."""
    overrides = ["objective.name=diversity", "student.ode_steps=1", "student.steps=4", "teacher.cfg_scale=1"]
    task = gaussian_task(*overrides, "objective.teacher_steps=400")
    noise, y = torch.randn(16, 1, 1, 4), torch.zeros(16, dtype=torch.int64)
    found = member(task, "diversity").average_velocity(noise, y)
    t = 0.75
    x_t = (1 - t) * 0.5 + ((1 - t) ** 2 * 0.16 + t**2) ** 0.5 * noise
    torch.testing.assert_close(found, (x_t - noise) / (t - 1), rtol=2e-3, atol=2e-3)


def test_diversity_leaves_the_first_step_to_the_ode() -> None:
    task = gaussian_task("objective.name=diversity", "student.ode_steps=1", "student.steps=4", "teacher.cfg_scale=1")
    ours = member(task, "diversity")
    step = torch.arange(4)
    assert ours.weights(Samples(torch.zeros(4), step, step), torch.zeros(4)).tolist() == [0, 1, 1, 1]
    inputs = task.objective.setting.rollout.inputs(torch.Generator().manual_seed(0))
    samples = Samples(torch.randn(256, 1, 1, 4, requires_grad=True), inputs.y, inputs.step)
    batch = ours.batch(0, 256, torch.Generator().manual_seed(1))
    ours.loss(samples, *batch)[0].backward()
    assert samples.x0.grad is not None
    assert not samples.x0.grad[inputs.step == 0].any() and samples.x0.grad[inputs.step == 1].any()
    assert task.student.module.scale.grad[0] != 0  # by the regression


def test_shared_timesteps_are_the_students_own(values: dict[str, Any]) -> None:
    task = task_of({**values, "objective": {"name": "timestep_sharing", "fake_score": {"updates": 1}}})
    t, _ = member(task, "timestep_sharing").batch(0, 400, torch.Generator().manual_seed(0))
    assert set(t.tolist()) == set(task.t_list.tolist())


def test_the_student_learns_from_data_at_its_own_timesteps(values: dict[str, Any]) -> None:
    task = task_of({**values, "objective": {"name": "flow_matching"}})
    ours = member(task, "flow_matching")
    x0, eps, t, y = ours.batch(3, 0, torch.Generator().manual_seed(0))
    assert set(t.tolist()) <= set(task.t_list.tolist()) and len(x0) == 4
    data = task.objective.setting.data
    pictures, labels = data.batch(torch.arange(len(data)), lambda shape: torch.zeros(shape))
    for picture, label in zip(x0, y, strict=True):
        assert any(torch.equal(picture, p) and label == of for p, of in zip(pictures, labels, strict=True))
    with torch.no_grad():
        velocity = task.student.module(interpolate(x0, eps, t), t, y)
        assert float(ours.loss(None, x0, eps, t, y)[0]) == pytest.approx(float(F.mse_loss(velocity, eps - x0)))


def test_preferences_begin_at_ln_2_and_are_learnt(values: dict[str, Any], tmp_path: Path) -> None:
    values["student"]["optim"] = {"lr": 1e-4}
    values["train"] |= {"batch_size": 24, "steps": 60}
    config = changed(values, RUNS["preference"], tmp_path)
    task = task_of({**config, "objective": {**config["objective"], "beta": 100}})
    ours = member(task, "preference")
    batch = ours.batch(0, 0, torch.Generator().manual_seed(0))
    loss, (margin,) = ours.loss(None, *batch)
    assert float(loss.detach()) == pytest.approx(np.log(2), rel=1e-6) and not margin.any()
    for step in range(60):
        task.update(step)
    loss, (margin,) = ours.loss(None, *batch)
    assert float(loss.detach()) < np.log(2) and float(margin.mean()) > 0.5
    x0_w, x0_l, eps, t, y = batch
    with torch.no_grad():
        gains = []
        for x0 in (x0_w, x0_l):
            before, now = (model(interpolate(x0, eps, t), t, y) for model in (ours.reference, task.student.module))
            gains.append((before - eps + x0).square().mean((1, 2, 3)) - (now - eps + x0).square().mean((1, 2, 3)))
    assert float((gains[0] - gains[1]).mean()) > 0
    expected = -F.logsigmoid(100 / 2 * (gains[0] - gains[1])).mean()
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)


def test_preferences_need_pairs(values: dict[str, Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros((23, 8, 8, 1), np.uint8), labels=np.arange(23) % 3)
    with pytest.raises(UserError, match="preferred and rejected must be pairs; they have 24 and 23 pictures"):
        task_of(changed(values, RUNS["preference"], tmp_path))
    for name in ("data", "other"):
        np.savez(tmp_path / f"{name}.npz", images=np.zeros((24, 16, 16, 1), np.uint8), labels=np.arange(24) % 3)
    without_data = changed(values, RUNS["preference"], tmp_path) | {"data": None}
    with pytest.raises(ValueError, match=r"data\.npz has samples of shape \(1, 16, 16\); the model takes \(1, 8, 8\)"):
        task_of(without_data)


# --- sums, and the ring ------------------------------------------------------------------------------------------


def test_losses_are_added_by_weight(values: dict[str, Any], tmp_path: Path) -> None:
    """The student's gradient is the weighted sum of the gradients of each objective by itself."""

    def gradient(**changes: Any) -> Tensor:
        task = task_of({**values, "train": {**values["train"], "accumulation": 1}, **changes})
        seen: list[Tensor] = []
        student = task.student
        step = student.optimizer.step

        def recorded(*args: Any, **options: Any) -> Any:
            seen.append(torch.cat([p.grad.flatten() for p in student.module.parameters() if p.grad is not None]))
            return step(*args, **options)

        student.optim = replace(student.optim, clip_norm=1e9)
        student.optimizer.step = recorded
        task.objective.update_student(0, log_now=False)
        return seen[0]

    def objective(weight: float) -> dict[str, Any]:
        return {**values["objective"], "weight": weight}

    both = gradient(objective=objective(1.0), mix={"flow_matching": {"weight": 0.3}})
    one = gradient(objective=objective(1.0), mix={"flow_matching": {"weight": 0.0}})
    other = gradient(objective=objective(0.0), mix={"flow_matching": {"weight": 1.0}})
    torch.testing.assert_close(both, one + 0.3 * other, rtol=1e-4, atol=1e-6)
    assert other.abs().max() > 0 and one.abs().max() > 0


RING = {
    "dmd": "",
    "decoupled_dmd": "objective.name=decoupled_dmd teacher.cfg_scale=1.2",
    "timestep_sharing": "objective.name=timestep_sharing",
    "f_distill": "objective.name=f_distill objective.discriminator.features=fake_score",
    "diversity": "objective.name=diversity student.ode_steps=1",
}


def test_a_ring_keeps_its_modes() -> None:
    """All eight, under whatever matches distributions; a few updates bring the samples nearer."""
    module = script("distil_ring")
    ring = module.Ring()
    net = module.fitted(ring, 700)
    short = ["train.steps=60", "objective.fake_score.updates=2", "student.optim.lr=1e-3"]
    for name, overrides in RING.items():
        found = module.distil(module.configured([*short, *overrides.split()], 0), ring, net)
        assert found.modes == module.MODES, name
        assert found.distance < 0.3 and found.outside < 0.4, (name, found)


def test_every_objective_has_a_test() -> None:
    tried = {*RING, *(change.get("objective", {}).get("name", "dmd") for change in RUNS.values())}
    tried |= {name for change in RUNS.values() for name in change.get("mix", {})}
    assert tried == set(OBJECTIVES)


def test_configurations_of_objectives_are_written_and_read(values: dict[str, Any], tmp_path: Path) -> None:
    for change in RUNS.values():
        config = build_config(RunConfig, changed(values, change, tmp_path))
        assert build_config(RunConfig, plain_values(config)) == config
