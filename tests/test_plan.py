"""Plans against torch's own accounting: what autograd keeps, what comes and goes, what the real objects weigh."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dar import RoutingConfig, SiT, SiTConfig
from dar.routing import DepthRouting
from distill.cli import main
from distill.conditions import ClassLabels
from distill.config import (
    EvalConfig,
    LoopConfig,
    OptimConfig,
    RolesConfig,
    StartConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
    WatchConfig,
)
from distill.data.base import Noise
from distill.models.lora import add_adapters
from distill.objectives import DmdConfig, FakeScoreConfig, RunConfig
from distill.objectives.losses import flow_matching_loss
from distill.objectives.task import DistillationTask, models_from
from distill.objectives.teacher import TeacherTask
from distill.planning import Launch, named_shape, plan_run, plan_train
from distill.planning.activations import ADAPTERS, Setting, saved_activations
from distill.planning.live_bytes import LiveBytes
from distill.planning.roles import optimizer_bytes
from distill.planning.tables import plan_to_json
from distill.planning.work import flops_of
from distill.training.start import TRAINABLE
from tests.conftest import critic, perturbed
from tests.memory import cuda_autocast, on_cuda, saved_bytes
from tests.test_cli import refused, run_config, train_config

ROWS, RANK = 4, 8
SHAPE = SiTConfig(
    input_size=16, patch_size=2, in_channels=4, hidden_size=64, depth=4, num_heads=4, num_classes=10,
    routing=RoutingConfig(kind="residual"),
)  # fmt: skip
OTHER = SiTConfig(
    input_size=8, patch_size=4, in_channels=1, hidden_size=48, depth=6, num_heads=2, num_classes=3, mlp_ratio=3.0,
    routing=RoutingConfig(kind="residual"), qk_norm=True,
)  # fmt: skip
RESIDUAL, CHUNKED, DENSE = (
    RoutingConfig(kind="residual"),
    RoutingConfig(chunk_size=3, scale="count"),
    RoutingConfig(chunk_size=1),
)
ROUTINGS = {
    "residual": RESIDUAL,
    "chunked": CHUNKED,
    "dense": DENSE,
    "static": RoutingConfig(query="static", chunk_size=2),
    "dynamic": RoutingConfig(query="dynamic", chunk_size=2),
    "dynamic, dense": RoutingConfig(query="dynamic", chunk_size=1),
    "anchor": RoutingConfig(chunk_size=2, anchor=True, final=False),
    "attnres": RoutingConfig(kind="attnres", chunk_size=2),
    "densenet": RoutingConfig(kind="densenet", chunk_size=2),
    "unet_skip": RoutingConfig(kind="unet_skip"),
    "hyper": RoutingConfig(kind="hyper"),
    "mhc": RoutingConfig(kind="hyper", mixing="doubly_stochastic"),
}


class NoData:
    """A data set without data."""

    sample_shape = (4, 16, 16)
    condition = ClassLabels(10)

    def __len__(self) -> int:
        return 100

    def batch(self, indices: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return noise(torch.Size([len(indices), *self.sample_shape])), indices % self.condition.num_classes


def model_of(shape: SiTConfig, setting: Setting) -> SiT:
    model = SiT(shape)
    TRAINABLE[setting.trainable](model, StartConfig("x", setting.trainable, max(setting.lora_rank, 1)))
    model.gradient_checkpointing = setting.checkpointing
    for module in model.modules():  # peft wraps the routing
        if isinstance(module, DepthRouting):
            module.backend = "torch"
    return model


def inputs(shape: SiTConfig, rows: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    x_t = torch.randn(rows, shape.in_channels, shape.input_size, shape.input_size, device=device)
    return x_t, torch.rand(rows, device=device), torch.zeros(rows, dtype=torch.int64, device=device)


def on_cpu(shape: SiTConfig, setting: Setting) -> int:
    model, (x_t, t, y) = model_of(shape, setting), inputs(shape, ROWS)
    return saved_bytes(lambda: flow_matching_loss(model(x_t, t, y), x_t, x_t.roll(1)), model.parameters())


def under_cuda_autocast(shape: SiTConfig, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> int:
    model = model_of(shape, setting)
    with cuda_autocast(monkeypatch):
        parameters, (x_t, t, y) = on_cuda(model), inputs(shape, ROWS, "cuda")

        def forward() -> Tensor:
            velocity = torch.func.functional_call(model, parameters, (x_t, t, y))
            torch.set_autocast_enabled("cuda", False)
            return flow_matching_loss(velocity, x_t, x_t.roll(1))

        return saved_bytes(forward, parameters.values())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_what_autograd_keeps(name: str, checkpointing: bool) -> None:
    for shape in (SHAPE, OTHER):
        shape, setting = replace(shape, routing=ROUTINGS[name]), Setting(checkpointing=checkpointing)
        assert sum(saved_activations(shape, ROWS, setting).values()) == pytest.approx(on_cpu(shape, setting), rel=0.03)


def test_what_autograd_keeps_where_adapters_are_merged() -> None:
    setting = Setting(trainable="lora", lora_rank=48)
    kept = saved_activations(SHAPE, ROWS, setting)
    assert kept[ADAPTERS] == SHAPE.depth * 4 * 12 * 64**2
    assert sum(kept.values()) == pytest.approx(on_cpu(SHAPE, setting), rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("name", "trainable"), [
    ("residual", "lora"), ("chunked", "lora"), ("dynamic", "lora"), ("chunked", "routing"), ("dense", "routing"),
])  # fmt: skip
def test_what_autograd_keeps_where_a_part_learns(name: str, trainable: str, checkpointing: bool) -> None:
    shape = replace(SHAPE, routing=ROUTINGS[name])
    setting = Setting(checkpointing=checkpointing, trainable=trainable, lora_rank=RANK)
    assert sum(saved_activations(shape, ROWS, setting).values()) == pytest.approx(on_cpu(shape, setting), rel=0.03)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("name", ["residual", "chunked", "dense", "dynamic", "anchor", "attnres", "unet_skip"])
def test_what_autograd_keeps_on_a_gpu_in_bf16(
    name: str, trainable: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shape in (SHAPE, OTHER):
        shape = replace(shape, routing=ROUTINGS[name])
        setting = Setting(2, checkpointing, trainable, RANK)
        found = under_cuda_autocast(shape, setting, monkeypatch)
        assert sum(saved_activations(shape, ROWS, setting).values()) == pytest.approx(found, rel=0.05)


def test_the_training_step_itself_keeps_no_more(accelerator) -> None:
    """`TeacherTask._loss`, with all that accelerate puts around the model."""
    for routing in (RESIDUAL, CHUNKED, DENSE):
        for checkpointing in (False, True):
            shape = replace(SHAPE, routing=routing)
            loop = LoopConfig(batch_size=ROWS, gradient_checkpointing=checkpointing)
            task = TeacherTask(TrainConfig("out", shape, train=loop), SiT(shape), NoData(), accelerator)
            x0, eps, t, y = task._draw(0)
            found = saved_bytes(
                lambda task=task, batch=(x0, eps, t, y): task._loss(*batch)[0], task.learner.module.parameters()
            )
            planned = saved_activations(shape, ROWS, Setting(checkpointing=checkpointing))
            assert sum(planned.values()) == pytest.approx(found, rel=0.03)


def distillation(shape: SiTConfig, accelerator, **changes) -> tuple[RunConfig, DistillationTask]:
    config = RunConfig(
        "out",
        **{
            "train": LoopConfig(batch_size=16),
            "roles": RolesConfig("all", RANK),
            "student": StudentConfig(steps=2),
            **changes,
        },
    )
    teacher = SiT(shape)
    perturbed(teacher)
    return config, DistillationTask(config, models_from(teacher, config), accelerator, 1.0)


LOOPS = {
    "plain": (LoopConfig(batch_size=16), "random_step"),
    "checkpointing": (LoopConfig(batch_size=16, gradient_checkpointing=True), "random_step"),
    "accumulation": (LoopConfig(batch_size=16, accumulation=2), "every_step"),
}


@pytest.mark.parametrize(("name", "trainable", "way"), [  # every two of the three come together
    ("residual", "all", "plain"), ("chunked", "lora", "plain"), ("dense", "all", "plain"),
    ("residual", "lora", "checkpointing"), ("chunked", "all", "checkpointing"), ("dense", "lora", "checkpointing"),
    ("residual", "all", "accumulation"), ("chunked", "lora", "accumulation"), ("dense", "all", "accumulation"),
])  # fmt: skip
def test_peaks_of_real_updates(name: str, trainable: str, way: str, accelerator) -> None:
    """Whole turns of critic and student, rollouts, optimizer and all: what they add to what was there."""
    shape = replace(SHAPE, routing=ROUTINGS[name])
    loop, rollout = LOOPS[way]
    changes = {
        "train": loop,
        "objective": DmdConfig(fake_score=FakeScoreConfig(updates=1)),
        "roles": RolesConfig(trainable, RANK),
        "student": StudentConfig(steps=2, rollout=rollout),
    }
    config, task = distillation(shape, accelerator, **changes)
    task.update(0)  # optimizers have their moments from now on
    phases = {phase.name: phase.total for phase in plan_run(config, shape, Launch()).phases}
    with LiveBytes() as critic:
        task.objective.members["dmd"].fake_score.update(1, 0, with_lag=True)
    with LiveBytes() as student:
        task.objective.update_student(1, log_now=True)
    assert phases["fake_score's update"] == pytest.approx(critic.peak, rel=0.1)
    assert phases["student's update"] == pytest.approx(student.peak, rel=0.1)


def test_a_pass_without_gradients() -> None:
    from distill.planning.activations import forward_temporaries

    for name in ("residual", "chunked", "dense", "dynamic", "unet_skip", "hyper"):
        shape = replace(SHAPE, routing=ROUTINGS[name])
        model, batch = SiT(shape), inputs(shape, ROWS)
        with LiveBytes() as found, torch.no_grad():
            model(*batch)
        assert forward_temporaries(shape, ROWS, 4) == pytest.approx(found.peak, rel=0.1)


def own_bytes(*models: nn.Module) -> list[int]:
    """Of parameters and buffers of each model, but for what an earlier one has."""
    seen: set[int] = set()
    sizes = []
    for model in models:
        storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
        sizes.append(sum(tensor.nbytes for key, tensor in storages.items() if key not in seen))
        seen |= set(storages)
    return sizes


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize("trainable", ["all", "lora"])
@pytest.mark.parametrize("routing", [RESIDUAL, CHUNKED], ids=["residual", "chunked"])
def test_roles_weigh_what_the_real_ones_do(routing: RoutingConfig, trainable: str, accelerator) -> None:
    shape = replace(SHAPE, routing=routing)
    config, task = distillation(shape, accelerator, roles=RolesConfig(trainable, RANK))
    task.update(0)
    setting = task.objective.setting
    teacher, student, fake_score, ema = plan_run(config, shape, Launch()).roles
    models = (
        setting.teacher.model,
        task.student.module,
        critic(task).module,
        task.ema.module,
    )
    assert [role.weights for role in (teacher, student, fake_score, ema)] == own_bytes(*models)
    assert (teacher.optimizer, ema.optimizer) == (0, 0)
    for role, learner in ((student, task.student), (fake_score, critic(task))):
        assert role.optimizer == state_bytes(learner.optimizer)
        learns = [parameter for parameter in learner.module.parameters() if parameter.requires_grad]
        assert role.gradients == sum(parameter.nbytes for parameter in learns)
        assert role.trainable == sum(parameter.numel() for parameter in learns)


@pytest.mark.parametrize("trainable", ["all", "routing", "lora"])
def test_a_training_weighs_what_the_real_one_does(trainable: str, accelerator, tmp_path: Path) -> None:
    shape = replace(SHAPE, routing=CHUNKED)
    config = TrainConfig("out", start=StartConfig(str(tmp_path), trainable, RANK), train=LoopConfig(batch_size=ROWS))
    task = TeacherTask(config, model_of(shape, Setting(trainable=trainable, lora_rank=RANK)), NoData(), accelerator)
    task.update(0)
    teacher, ema = plan_train(config, shape, Launch()).roles
    assert [teacher.weights, ema.weights] == own_bytes(task.learner.module, task.ema.module)
    assert teacher.optimizer == state_bytes(task.learner.optimizer)


def test_optimizer_in_8_bits() -> None:
    """Two bytes a number, a scale of 4 bytes per 256 of either moment, two tables of 256; small tensors in float32."""
    assert optimizer_bytes([8192, 100], "adamw_8bit") == 2 * 8192 + 2 * 4 * 32 + 2 * 4 * 256 + 8 * 100
    assert optimizer_bytes([8192, 100], "adamw") == 8 * 8292 + 2 * 4


@pytest.mark.parametrize("name", ROUTINGS)
def test_operations_are_those_of_torchs_counter(name: str) -> None:
    for shape in (SHAPE, OTHER):
        shape = replace(shape, routing=ROUTINGS[name])
        model, batch = SiT(shape), inputs(shape, 1)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward, torch.no_grad():
            model(*batch)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as update:
            model(*batch).sum().backward()
        flops = flops_of(shape, Setting())
        assert flops.forward == forward.get_total_flops()
        assert flops.update(Setting()) == pytest.approx(update.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("name", "trainable"), [("residual", "lora"), ("chunked", "lora"), ("dense", "routing")])
def test_operations_where_a_part_learns(name: str, trainable: str, checkpointing: bool) -> None:
    shape = replace(SHAPE, routing=ROUTINGS[name])
    setting = Setting(checkpointing=checkpointing, trainable=trainable, lora_rank=RANK)
    model, batch = model_of(shape, setting), inputs(shape, 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as update:
        model(*batch).sum().backward()
    assert flops_of(shape, setting).update(setting) == pytest.approx(update.get_total_flops(), rel=0.03)


def test_processes_share_or_repeat() -> None:
    config = RunConfig("out", train=LoopConfig(batch_size=16))
    alone, ddp, fsdp = (plan_run(config, SHAPE, launch) for launch in (Launch(), Launch(4), Launch(4, "fsdp")))
    assert ddp.held == alone.held + sum(role.gradients for role in alone.roles)  # buckets
    assert ddp.rows == fsdp.rows == alone.rows // 4
    assert fsdp.buckets == 0
    for whole, share in zip(alone.roles, fsdp.roles, strict=True):
        assert share.weights == -(-whole.weights // 4) and share.optimizer == -(-whole.optimizer // 4)
    assert fsdp.held < alone.held < ddp.held
    assert ddp.flops == alone.flops and ddp.hours(1.0, 1.0) < alone.hours(1.0, 1.0)


BLIND = DmdConfig(fake_score=FakeScoreConfig(knows_step=False))  # a critic whose conditioning takes no gradient


def test_what_makes_a_plan_smaller() -> None:
    shape = replace(SHAPE, routing=CHUNKED)
    config = RunConfig("out", train=LoopConfig(batch_size=32))
    small = OptimConfig(name="adamw_8bit")
    plans = [
        plan_run(config, shape, Launch()),
        plan_run(replace(config, train=replace(config.train, mixed_precision="bf16")), shape, Launch()),
        plan_run(replace(config, train=replace(config.train, gradient_checkpointing=True)), shape, Launch()),
        plan_run(replace(config, train=replace(config.train, accumulation=4)), shape, Launch()),
        plan_run(replace(config, roles=RolesConfig("lora", RANK), objective=BLIND), shape, Launch()),
    ]
    peaks = [max(phase.total for phase in plan.phases[:3]) for plan in plans]
    assert all(peak < peaks[0] for peak in peaks[1:])
    in_8_bits = replace(config, student=replace(config.student, optim=small))
    student = plan_run(in_8_bits, shape, Launch()).roles[1].optimizer
    assert 2.0 < plans[0].roles[1].optimizer / student < 4.0
    assert plans[2].flops > plans[0].flops > plans[4].flops


def test_an_update_is_counted_turn_by_turn() -> None:
    """Of 8 samples, 4 steps, a random one of them trained: 1.5 steps of rollout before it on average."""
    student = StudentConfig(rollout="random_step")
    config = RunConfig("out", student=student, train=LoopConfig(batch_size=8), objective=DmdConfig())
    plan = plan_run(config, SHAPE, Launch())
    critic = 1.5 * 8 + 8 + 3 * 8
    learner = 1.5 * 8 + 3 * 8 + 2 * 8 + 8
    assert plan.forwards == 5 * critic + learner
    flops = flops_of(SHAPE, Setting())
    assert plan.flops == pytest.approx((5 * 20 + 36) * flops.forward + 48 * flops.update(Setting()))
    unguided = plan_run(replace(config, teacher=TeacherConfig(cfg_scale=1.0)), SHAPE, Launch())
    assert plan.forwards - unguided.forwards == 8
    every = plan_run(replace(config, student=StudentConfig(rollout="every_step")), SHAPE, Launch())
    assert every.forwards == 5 * (4 * 8 + 3 * 4 * 8) + 3 * 8 + (3 + 2 + 1) * 4 * 8


def test_the_critics_warm_up_takes_its_time() -> None:
    student = StudentConfig(rollout="random_step")
    config = RunConfig("out", student=student, train=LoopConfig(steps=50, batch_size=8), objective=DmdConfig())
    plan = plan_run(config, SHAPE, Launch())
    warm = plan_run(
        replace(config, objective=DmdConfig(fake_score=FakeScoreConfig(warmup_updates=100))),
        SHAPE,
        Launch(2),
    )
    flops = flops_of(SHAPE, Setting())
    turn = 20 * flops.forward + 8 * flops.update(Setting())
    assert warm.warmup_flops == pytest.approx(100 * turn) and plan.warmup_flops == 0
    assert warm.flops == plan.flops
    assert warm.training_flops == pytest.approx(50 * plan.flops + 100 * turn + plan.watching_flops)
    hours = (warm.training_flops / 3e12 + warm.drawing_flops / 1e12) / 2 / 3600
    assert warm.hours(3.0, 1.0) == pytest.approx(hours)


def test_looks_are_counted() -> None:
    """In 100 updates four, of 100 images in 4 steps each, and the teacher's in 10 guided ones."""
    watch = WatchConfig(every=30, num_images=100, teacher_steps=10)
    config = RunConfig("out", train=LoopConfig(steps=100, batch_size=8), watch=watch)
    plan = plan_run(config, replace(SHAPE, num_classes=10), Launch())
    passes = 100 * (4 * 4 + 10 * 2)
    assert plan.watching_flops == pytest.approx(passes * flops_of(replace(SHAPE, num_classes=10), Setting()).forward)


def test_a_report_draws_what_is_not_stored() -> None:
    """4 steps of the student, 4 and 50 guided ones of the teacher; the last for a grid alone where they are stored."""

    def drawn(path: str, reference: str | None, shape: SiTConfig = SHAPE, num_images: int = 2000) -> float:
        evaluate = EvalConfig(num_images=num_images, teacher_reference=reference)
        config = RunConfig("out", teacher=TeacherConfig(path=path), train=LoopConfig(batch_size=8), evaluate=evaluate)
        return plan_run(config, shape, Launch()).drawing_flops / flops_of(shape, Setting()).forward

    thousand = replace(SHAPE, num_classes=1000)
    assert drawn("embedded", "embedded") == pytest.approx(12 * 2000 + 100 * 80)
    assert drawn("embedded", "embedded", num_images=20) == pytest.approx(112 * 20)
    assert drawn("models/own", "own.npz", thousand) == pytest.approx(12 * 2000 + 100 * 200)
    for path, reference in (("embedded", None), ("models/own", None), ("models/own", "embedded")):
        assert drawn(path, reference) == pytest.approx(112 * 2000)


@pytest.mark.parametrize(("precision", "rate"), [("no", 67e12), ("bf16", 989e12)])
def test_a_report_is_drawn_at_the_rate_of_its_precision(precision: str, rate: float) -> None:
    train = LoopConfig(batch_size=8, mixed_precision="bf16")
    config = RunConfig("out", train=train, evaluate=EvalConfig(mixed_precision=precision))
    plan = plan_run(config, SHAPE, Launch())
    hours = {device["name"]: device["hours"] for device in json.loads(plan_to_json(plan))["devices"]}
    expected = (plan.training_flops / 989e12 + plan.drawing_flops / rate) / 0.3 / 3600
    assert hours["H100 SXM 80 GB"] == pytest.approx(expected)


def test_nothing_is_built_in_memory() -> None:
    config = RunConfig("out", roles=RolesConfig("lora"), train=LoopConfig(batch_size=8))
    with LiveBytes("cpu") as found:
        plan = plan_run(config, named_shape(["SiT-XL/2", "routing.kind=dar"]), Launch())
    assert plan.roles[0].parameters > 675e6
    assert found.peak < 2**20


def test_plan_and_dry_run_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    assert main(["plan", config]) == 0
    planned = capsys.readouterr().out
    assert main(["run", config, "--dry-run"]) == 0
    assert capsys.readouterr().out == planned
    for word in ("teacher", "student", "fake_score", "EMA", "rollout", "H100", "not measurements", "per process"):
        assert word in planned
    assert list(tmp_path.iterdir()) == [Path(config)]


def test_json_holds_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path, "roles: {trainable: lora, lora_rank: 4}")
    arguments = ["--model", "SiT-S/4", "num_classes=10", "routing.kind=dar", "--processes", "2", "--tflops", "50"]
    assert main(["plan", config, "train.batch_size=8", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measured"] is False
    assert found["launch"] == {"processes": 2, "strategy": "ddp"}
    assert found["model"]["depth"] == 12 and found["model"]["routing"]["kind"] == "dar"
    assert found["held"] == found["ddp_buckets"] + sum(role["weights"] + role["optimizer"] for role in found["roles"])
    assert found["peak"] == found["held"] + max(phase["total"] for phase in found["phases"])
    at_50 = found["devices"][-1]
    training = found["flops_per_update"] * found["train"]["steps"] + found["flops_of_warmup"]
    work = (training + found["flops_of_watching"] + found["flops_of_drawing"]) / 2
    assert at_50["hours"] == pytest.approx(work / 50e12 / 3600)


def test_a_training_is_planned_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", train_config(tmp_path, tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train -> " in out and "fake_score" not in out
    fine_tuning = tmp_path / "fine_tune.yaml"
    fine_tuning.write_text(f"output: {tmp_path / 'run'}\nstart: {{path: missing, trainable: routing}}\n")
    message = refused(capsys, "plan", str(fine_tuning))
    assert "start.path = missing holds no config.json" in message and "--model" in message
    assert main(["plan", str(fine_tuning), "--model", "SiT-S/4", "routing.kind=dar", "routing.scale=count"]) == 0
    # 25 readers of width 384, a query and a gate each.
    assert "19,200 of" in capsys.readouterr().out


def test_accelerates_file_says_who_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 4\n")
    config = run_config(tmp_path)
    assert main(["plan", config, "--accelerate", str(tmp_path / "fsdp.yaml")]) == 0
    assert "4, fsdp" in capsys.readouterr().out
    (tmp_path / "tpu.yaml").write_text("distributed_type: XLA\n")
    assert "distributed_type must be one of" in refused(
        capsys, "plan", config, "--accelerate", str(tmp_path / "tpu.yaml")
    )


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(tmp_path)
    assert "no preset 'SiT-Q/2'" in refused(capsys, "plan", config, "--model", "SiT-Q/2")
    assert "did you mean depth?" in refused(capsys, "plan", config, "--model", "SiT-S/2", "dept=3")
    assert "give fields as key=value" in refused(capsys, "plan", config, "--model", "SiT-S/2", "dar")
    message = refused(capsys, "plan", config, "train.batch_size=6", "--processes", "4")
    assert "must be a multiple of processes x accumulation = 4; got 6" in message
    assert "--processes must be at least 1; got 0" in refused(capsys, "plan", config, "--processes", "0")
    assert "--tflops must be finite and above 0" in refused(capsys, "plan", config, "--tflops", "0")
    assert "teacher.path = gone holds no config.json" in refused(capsys, "plan", config, "teacher.path=gone")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{}")
    assert "is no valid SiTConfig" in refused(capsys, "plan", config, f"teacher.path={tmp_path / 'bad'}")
    model = train_config(tmp_path, tmp_path)
    assert "--model stands for a folder's shape" in refused(capsys, "plan", model, "--model", "SiT-S/2")
    assert "did you mean student.steps?" in refused(capsys, "plan", config, "student.step=2")


def test_adapters_are_where_the_plan_has_them() -> None:
    """Both count the same layers: the plan by formula, peft by name."""
    model = SiT(SHAPE)
    add_adapters(model, RANK, base="x", field="x")
    found = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" in name)
    assert found == SHAPE.depth * RANK * (6 * 64 + 2 * (64 + 256))
