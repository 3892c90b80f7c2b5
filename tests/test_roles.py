"""teacher, student and fake_score, whole or as adapters over one backbone: what they share, learn and leave behind."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from dar import RoutingConfig, SiT
from distill.assets import asset
from distill.cli import main
from distill.config import RolesConfig, TeacherConfig
from distill.errors import UserError
from distill.models.ema import Ema, limited_decay
from distill.models.parameters import copy_sharing, frozen_parameters, move_together, trainable_parameters
from distill.objectives import RunConfig
from distill.objectives.base import Samples
from distill.objectives.losses import dmd_loss, flow_matching_loss
from distill.objectives.task import DistillationTask
from distill.sampling.flow import combine_cfg, interpolate, velocity_to_x0
from distill.verbs.run import write_student
from tests.conftest import build_roles, critic, models_of, perturbed, tiny_config
from tests.test_cli import QUICK
from tests.test_cli import run_config as cli_config

LORA = RolesConfig("lora", lora_rank=4)
WHOLE = RolesConfig("all")


@pytest.fixture
def teacher(tmp_path: Path, tiny_model: SiT) -> TeacherConfig:
    tiny_model.save_pretrained(tmp_path / "base")
    return TeacherConfig(path=str(tmp_path / "base"))


def batch(size: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(size, 1, 8, 8, generator=generator, dtype=dtype)
    return x_t, torch.rand(size, generator=generator, dtype=dtype), torch.arange(size) % 4


def storage_bytes(*models: nn.Module) -> int:
    """Memory of all parameters, each tensor counted once however many models hold it."""
    storages = [parameter.untyped_storage() for model in models for parameter in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def learning_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in trainable_parameters(model).values())


@pytest.mark.parametrize("roles", [WHOLE, LORA], ids=["all", "lora"])
@pytest.mark.parametrize("kind", ["dar", "residual", "hyper"])
def test_all_roles_compute_the_same_at_the_start(tmp_path, roles, kind) -> None:
    torch.manual_seed(0)
    model = SiT(tiny_config(routing=RoutingConfig(kind=kind, chunk_size=2)))
    perturbed(model)
    model.save_pretrained(tmp_path / "base")
    teacher, student, fake_score = build_roles(TeacherConfig(path=str(tmp_path / "base")), roles)
    expected = model(*batch())
    for role in (teacher, student, fake_score, student.train()):
        assert torch.equal(role(*batch()), expected)
    student.gradient_checkpointing = True
    assert torch.equal(student(*batch()), expected)
    assert (student.null_label, student.sample_shape, student.t_range) == (3, (1, 8, 8), (0.0, 1.0))


def test_adapters_and_routing_learn_and_nothing_else(teacher) -> None:
    base, student, fake_score = build_roles(teacher, LORA)
    assert not trainable_parameters(base)
    layers = [f"blocks.{i}.{layer}" for i in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    adapters = {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}
    routers = {f"routing.modules_to_save.default.queries.{name}" for name in ("weight", "t_gate")}
    assert set(trainable_parameters(student)) == set(trainable_parameters(fake_score)) == adapters | routers
    ours, theirs = ({id(p) for p in trainable_parameters(role).values()} for role in (student, fake_score))
    assert not ours & theirs
    shared = {id(p) for p in base.parameters()}
    assert (
        {id(p) for p in frozen_parameters(student).values()}
        == {id(p) for p in frozen_parameters(fake_score).values()}
        == shared
    )


def test_the_backbone_is_in_memory_once(teacher) -> None:
    one = storage_bytes(SiT.from_pretrained(teacher.path))
    whole = build_roles(teacher, WHOLE)
    assert storage_bytes(*whole) == 3 * one
    roles = build_roles(teacher, LORA)
    assert storage_bytes(*roles) == one + 2 * learning_bytes(roles[1]) < 2 * one
    averaged = Ema(roles[1], 0.9).module
    assert storage_bytes(*roles, averaged) == one + 3 * learning_bytes(roles[1])
    for role in roles:  # to another device it goes the same way
        role.to(torch.float64)
    assert storage_bytes(*roles) == 2 * (one + 2 * learning_bytes(build_roles(teacher, LORA)[1]))
    assert torch.equal(roles[1](*batch(dtype=torch.float64)), roles[0](*batch(dtype=torch.float64)))


def explicit(model: SiT) -> SiT:
    """A plain model whose weights are W + B A, put together by hand, and learn."""
    state, weights = model.state_dict(), {}
    for name, tensor in state.items():
        if ".base_layer." in name:
            layer, kind = name.split(".base_layer.")
            delta = state[f"{layer}.lora_B.default.weight"] @ state[f"{layer}.lora_A.default.weight"]
            weights[f"{layer}.{kind}"] = tensor + delta if kind == "weight" else tensor
        elif name.startswith("routing.modules_to_save.default."):
            weights[name.replace("modules_to_save.default.", "")] = tensor
        elif "lora_" not in name and ".original_module." not in name:
            weights[name] = tensor
    plain = SiT(model.config).to(torch.float64)
    plain.load_state_dict(weights)
    return plain


def expected_gradients(role: SiT, plain: SiT) -> dict[str, Tensor]:
    """From dL/dW of the explicit model: dL/dB = dL/dW A^T, dL/dA = B^T dL/dW; the routing's as they are."""
    weights = dict(plain.named_parameters())
    expected = {}
    for name, parameter in trainable_parameters(role).items():
        if name.startswith("routing."):
            gradient = weights[name.replace("modules_to_save.default.", "")].grad
        else:
            layer, side = name.removesuffix(".default.weight").split(".lora_")
            d_weight = weights[f"{layer}.weight"].grad
            other = trainable_parameters(role)[f"{layer}.lora_{'B' if side == 'A' else 'A'}.default.weight"].detach()
            gradient = other.T @ d_weight if side == "A" else d_weight @ other.T
        assert gradient is not None and gradient.abs().max() > 0 and gradient.shape == parameter.shape
        expected[name] = gradient
    return expected


@pytest.fixture
def double_task(teacher, tmp_path, accelerator) -> DistillationTask:
    """Roles that have long left the teacher, each its own way, in float64."""
    config = RunConfig(str(tmp_path / "run"), replace(teacher, cfg_scale=2.0), roles=LORA)
    base, student, fake_score = (role.double() for role in build_roles(config.teacher, LORA))
    perturbed(student, seed=1, std=0.2)
    perturbed(fake_score, seed=2, std=0.2)
    return DistillationTask(config, models_of(config, (base, student, fake_score)), accelerator, 1.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_student_gradients_are_those_of_explicit_copies(double_task, checkpointing) -> None:
    """The critic and the teacher run between the student's forward and its backward pass."""
    task, (x_in, t_in, y), (eps, t, _) = double_task, batch(seed=3, dtype=torch.float64), batch(seed=4)
    y, eps, t = y % 3, eps.double(), t.double().clamp(0.02, 0.98)
    student, fake_score = explicit(task.student.module), explicit(critic(task).module)
    teacher = task.objective.setting.teacher.model
    x0_gen = velocity_to_x0(x_in, student(x_in, t_in, y), t_in)
    with torch.no_grad():
        x_t = interpolate(x0_gen, eps, t)
        guided = combine_cfg(teacher(x_t, t, y), teacher(x_t, t, torch.full_like(y, 3)), 2.0)
        x0_fake = velocity_to_x0(x_t, fake_score(x_t, t, y), t)
    loss = dmd_loss(x0_gen, velocity_to_x0(x_t, guided, t), x0_fake)
    loss.backward()

    task.student.module.gradient_checkpointing = checkpointing
    x0 = velocity_to_x0(x_in, task.student.model(x_in, t_in, y), t_in)
    ours, _ = task.objective.members["dmd"].loss(Samples(x0, y, torch.zeros_like(y)), t, eps)
    ours.backward()
    torch.testing.assert_close(ours, loss, rtol=1e-10, atol=0)
    for name, gradient in expected_gradients(task.student.module, student).items():
        torch.testing.assert_close(
            trainable_parameters(task.student.module)[name].grad, gradient, rtol=1e-8, atol=1e-14, msg=name
        )
    assert all(p.grad is None for p in (*critic(task).module.parameters(), *teacher.parameters()))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_critic_gradients_are_those_of_an_explicit_copy(double_task, checkpointing) -> None:
    task, (x0, t, y), (eps, _, _) = double_task, batch(seed=5, dtype=torch.float64), batch(seed=6)
    eps, y = eps.double(), y % 3
    fake_score = explicit(critic(task).module)
    flow_matching_loss(fake_score(interpolate(x0, eps, t), t, y), x0, eps).backward()
    critic(task).module.gradient_checkpointing = checkpointing
    loss, _ = task.objective.members["dmd"].fake_score._loss(critic(task).model, x0, eps, t, y)
    with torch.no_grad():  # others use the backbone before the backward pass
        task.student.module(x0, t, y)
        task.objective.setting.teacher.model(x0, t, y)
    loss.backward()
    for name, gradient in expected_gradients(critic(task).module, fake_score).items():
        torch.testing.assert_close(
            trainable_parameters(critic(task).module)[name].grad, gradient, rtol=1e-8, atol=1e-14, msg=name
        )
    assert all(
        p.grad is None for p in (*task.student.module.parameters(), *task.objective.setting.teacher.model.parameters())
    )


def test_a_backbone_stays_what_it_was(teacher, tmp_path, run_config, accelerator) -> None:
    torch.manual_seed(0)
    roles = build_roles(teacher, LORA)
    before = copy.deepcopy(roles[0].state_dict())
    config = replace(run_config, teacher=teacher, roles=LORA)
    task = DistillationTask(config, models_of(config, roles), accelerator, 1.0)
    for step in range(3):
        task.update(step)
    write_student(task.averaged_student, task.t_list, tmp_path / "out")
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in task.objective.setting.teacher.model.state_dict().items()
    )
    for role in (task.student.module, critic(task).module, task.averaged_student):
        moved = dict(role.named_parameters())
        assert moved["routing.modules_to_save.default.queries.weight"].abs().max() > 0
        assert moved["blocks.1.mlp.fc2.lora_B.default.weight"].abs().max() > 0
    for name, tensor in frozen_parameters(task.student.module).items():
        assert tensor.data_ptr() == dict(task.averaged_student.named_parameters())[name].data_ptr()


def test_the_average_is_over_what_learns(teacher) -> None:
    _, student, _ = build_roles(teacher, LORA)
    ema = Ema(student, 0.75)
    perturbed(student, seed=1)
    ema.update(student)
    first = {name: parameter.detach().clone() for name, parameter in trainable_parameters(student).items()}
    perturbed(student, seed=2)
    ema.update(student)
    averaged = dict(ema.module.named_parameters())
    for name, parameter in trainable_parameters(student).items():
        torch.testing.assert_close(averaged[name], 0.75 * first[name] + 0.25 * parameter, msg=name)
    other = Ema(student, 0.75)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module(*batch()), ema.module(*batch()))
    assert not torch.equal(ema.module(*batch()), student(*batch()))
    assert set(ema.state_dict()["averages"]) == set(trainable_parameters(student))


@pytest.mark.parametrize(("decay", "steps", "expected"), [(0.98, 150, 0.98), (0.9999, 100, 0.05**0.01), (0.5, 1, 0.05)])
def test_the_average_forgets_where_it_began(decay: float, steps: int, expected: float) -> None:
    assert limited_decay(decay, steps) == pytest.approx(expected)
    model = nn.Linear(1, 1, bias=False)
    ema = Ema(model, limited_decay(decay, steps))
    for n in range(steps + 1):
        nn.init.constant_(model.weight, float(n > 0))
        ema.update(model)
    assert 1 - float(ema.module.weight.detach()) == pytest.approx(expected**steps, abs=1e-6)
    assert expected**steps <= 0.0501


def test_the_average_computes_with_its_own_parameters_under_bf16(
    teacher, tmp_path, run_config, accelerator_in_bf16
) -> None:
    """accelerate replaces the forward of a model that it prepares, and the average is a copy of one."""
    config = replace(run_config, teacher=teacher, roles=LORA)
    task = DistillationTask(config, models_of(config, build_roles(teacher, LORA)), accelerator_in_bf16, 1.0)
    task.update(0)
    with torch.no_grad():
        perturbed(task.student.module, std=0.2)
        averaged, student = task.averaged_student(*batch()), task.student.module(*batch())
    assert averaged.dtype == torch.float32 and (averaged - student).abs().max() > 0.01
    plain = write_student(task.averaged_student, task.t_list, tmp_path / "out")
    loaded = SiT.from_pretrained(tmp_path / "out" / "student")
    with accelerator_in_bf16.autocast(), torch.no_grad():
        torch.testing.assert_close(loaded(*batch()).float(), averaged, rtol=0, atol=0.01)
        torch.testing.assert_close(plain(*batch()).float(), loaded(*batch()).float())


def test_written_adapters_and_model_are_the_student(teacher, tmp_path) -> None:
    base, student, _ = build_roles(teacher, LORA)
    perturbed(student, seed=1, std=0.2)
    plain = write_student(student, torch.tensor([1.0, 0.5]), tmp_path / "out")
    with torch.no_grad():
        expected, before = student(*batch()), base(*batch())
        assert (expected - before).abs().max() > 0.01
        loaded = PeftModel.from_pretrained(SiT.from_pretrained(teacher.path), str(tmp_path / "out" / "adapter"))
        torch.testing.assert_close(loaded(*batch()), expected, rtol=0, atol=1e-6)
        folder = SiT.from_pretrained(tmp_path / "out" / "student")
        torch.testing.assert_close(folder(*batch()), expected, rtol=0, atol=1e-6)
        assert torch.equal(plain(*batch()), folder(*batch()))
        assert torch.equal(student(*batch()), expected) and torch.equal(base(*batch()), before)
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in base.named_parameters()}
    assert json.loads((tmp_path / "out" / "student" / "sampler.json").read_text())["t_list"] == [1.0, 0.5]
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 4, "LORA")
    assert (config["modules_to_save"], config["base_model_name_or_path"]) == (["routing"], teacher.path)
    with safe_open(tmp_path / "out" / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        assert len(file.keys()) == len(trainable_parameters(student))
        assert "base_model.model.routing.queries.weight" in file.keys()  # noqa: SIM118


def test_whole_students_leave_no_adapter(teacher, tmp_path) -> None:
    _, student, _ = build_roles(teacher, WHOLE)
    assert write_student(student, torch.tensor([1.0]), tmp_path / "out") is student
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["student"]


def test_sharing_copies_hold_what_is_shared_and_copy_the_rest() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    other = copy_sharing(model, model[0].parameters())
    assert other[0].weight is model[0].weight and other[0] is not model[0]
    assert other[1].weight is not model[1].weight and torch.equal(other[1].weight, model[1].weight)


@pytest.mark.usefixtures("small_teacher")
def test_adapters_by_the_command_line(tmp_path) -> None:
    """A few updates with gradient checkpointing, and what is done with a student."""
    config = cli_config(tmp_path, "roles: {trainable: lora, lora_rank: 4}\n")
    assert main(["run", config, *QUICK, "train.gradient_checkpointing=true"]) == 0
    folder = tmp_path / "run"
    assert {"adapter", "student", "report"} <= {path.name for path in folder.iterdir()}
    assert "lora_rank: 4" in (folder / "report" / "report.html").read_text()
    assert main(["sample", str(folder), "--output", str(tmp_path / "drawn"), "--num-images", "2"]) == 0
    adapted = PeftModel.from_pretrained(SiT.from_pretrained(asset("teacher")), str(folder / "adapter"))
    student = SiT.from_pretrained(folder / "student")
    x_t = torch.randn(2, *student.sample_shape, generator=torch.Generator().manual_seed(0))
    inputs = x_t, torch.tensor([0.3, 0.9]), torch.tensor([1, 7])
    with torch.no_grad():
        torch.testing.assert_close(student(*inputs), adapted(*inputs), rtol=0, atol=1e-5)


def test_what_cannot_be_is_refused(teacher, monkeypatch) -> None:
    with pytest.raises(UserError, match=r"roles\.trainable must be one of all, lora; got 'some'"):
        RolesConfig("some")
    with pytest.raises(UserError, match=r"roles\.lora_rank must be at least 1; got 0"):
        RolesConfig("lora", 0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"roles\.trainable = lora needs peft: pip install 'dar-distill\[lora\]'"):
        build_roles(teacher, LORA)
    build_roles(teacher, WHOLE)


def test_buffers_are_shared_and_stay_so_where_models_move_together() -> None:
    model = torch.nn.BatchNorm1d(4)
    copies = [copy_sharing(model, model.parameters()) for _ in range(2)]
    move_together([model, *copies], torch.device("meta"))
    assert model.running_mean is not None and model.running_mean.is_meta
    assert all(copied.running_mean is model.running_mean for copied in copies)
