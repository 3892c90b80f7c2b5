"""One distillation update: whole roles and LoRA roles as `run` trains them, beside the order that DMD2 published.

    python scripts/bench_update.py --output benchmarks/update_cpu.md

The published order (arXiv:2405.14867, its public training loop, written anew here): one process, three whole models,
one sample of the student per critic update, the first of which also serves the student's own update. Ours draws a
fresh sample for the student's update, a rollout more, or takes all batches of an update out of one shared rollout.
Same model, batch, precision, critic updates and guidance; arms take turns on a CPU, on a GPU one follows the other and
the peak of memory is taken too. There ours runs as CUDA graphs, and whole roles kernel by kernel as well. No weights
are needed: the model is random. GPU: SiT-XL/2 on latents, 8 samples per update, bfloat16; CPU: the shipped teacher's
shape.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from bench_tools import is_cuda, milliseconds, parsed, parser_of, setup, table, time_in_turn
from torch import Tensor, nn

from dar import SiT, SiTConfig, preset
from distill.conditions import condition_of
from distill.config import LoopConfig, RolesConfig, StudentConfig, TeacherConfig
from distill.files import write_text
from distill.models.frozen import frozen_in
from distill.objectives import RunConfig, dmd_loss, flow_matching_loss
from distill.objectives.task import DistillationTask, build_models
from distill.sampling import rollout
from distill.sampling.flow import interpolate, velocity_to_x0
from distill.sampling.guidance import Denoiser
from distill.sampling.schedules import t_grid

REFERENCE = "published order"
SHAPES = {"cpu": SiTConfig(28, 7, 1, 96, 16, 3, 10, gelu="none"), "cuda": preset("SiT-XL/2")}


def random_teacher(config: SiTConfig, folder: Path) -> None:
    """Away from the zeros of initialisation, where nothing would have a gradient."""
    torch.manual_seed(0)
    model = SiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(folder)


class Ours:
    """An update of `run`."""

    def __init__(self, config: RunConfig, accelerator: Accelerator) -> None:
        models = build_models(config).to(accelerator.device)
        self.task = DistillationTask(config, models, accelerator, 1.0)
        self.step = 0
        self.frozen = ExitStack()
        self.frozen.enter_context(frozen_in(accelerator.mixed_precision, cast(nn.Module, models.teacher)))

    def update(self) -> None:
        self.step += 1
        self.task.update(self.step)


class PublishedOrder:
    """An update in the order of DMD2's public loop."""

    def __init__(self, config: RunConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.teacher = SiT.from_pretrained(config.teacher.path).to(accelerator.device)
        self.student, self.fake_score = copy.deepcopy(self.teacher), copy.deepcopy(self.teacher)
        self.teacher.eval().requires_grad_(False)
        self.condition = condition_of(self.teacher)
        self.guided = Denoiser(self.teacher, self.condition, config.teacher.cfg_scale)
        self.t_list = t_grid(config.student.steps, config.student.shift)[:-1]
        self.optimizers = {
            role: torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
            for role, model in (("student", self.student), ("fake_score", self.fake_score))
        }

    def update(self) -> None:
        for i in range(self.config.objective.fake_score.updates):
            learns = i == 0
            with torch.set_grad_enabled(learns), self.accelerator.autocast():
                x0, y = self._sample()
            if learns:
                self._step("student", self.student, self._student_loss(x0, y))
            self._step("fake_score", self.fake_score, self._critic_loss(x0.detach(), y))

    def _sample(self) -> tuple[Tensor, Tensor]:
        size, device = self.config.train.batch_size, self.accelerator.device
        y = torch.randint(self.teacher.null_label, (size,), device=device)
        noise = torch.randn(len(self.t_list), size, *self.teacher.sample_shape, device=device)
        index = int(torch.randint(len(self.t_list), (1,)))
        x_in = rollout(Denoiser(self.student, self.condition), noise, y, self.t_list, index)
        t_in = self.t_list[index].to(noise).expand(size)
        return velocity_to_x0(x_in, self.student(x_in, t_in, y), t_in), y

    def _noised(self, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t, eps = torch.rand(len(x0), device=x0.device), torch.randn_like(x0)
        return interpolate(x0, eps, t), t, eps

    def _student_loss(self, x0: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), self.accelerator.autocast():
            x_t, t, _ = self._noised(x0.detach())
            x0_teacher = self.guided.x0(x_t, t, y)
            x0_fake = velocity_to_x0(x_t, self.fake_score(x_t, t, y), t)
        return dmd_loss(x0, x0_teacher, x0_fake)

    def _critic_loss(self, x0: Tensor, y: Tensor) -> Tensor:
        x_t, t, eps = self._noised(x0)
        with self.accelerator.autocast():
            velocity = self.fake_score(x_t, t, y)
        return flow_matching_loss(velocity, x0, eps)

    def _step(self, role: str, model: SiT, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        self.optimizers[role].step()
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)


def shares(arm: Ours, repeats: int) -> dict[str, float]:
    """Of an update's time: critic updates, the student's update, the average."""
    parts = {
        "critic updates": (arm.task.objective.members["dmd"], "teach"),
        "student update": (arm.task.objective, "update_student"),
        "EMA": (arm.task.ema, "update"),
    }
    spent = dict.fromkeys(parts, 0.0)

    def timed(part: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            started = _now()
            result = call(*args, **options)
            spent[part] += _now() - started
            return result

        return wrapped

    for part, (owner, name) in parts.items():
        setattr(owner, name, timed(part, getattr(owner, name)))
    started = _now()
    for _ in range(repeats):
        arm.update()
    whole = _now() - started
    return {part: seconds / whole for part, seconds in spent.items()}


class Measured(NamedTuple):
    """seconds: of each update. peak: of memory, in words. parts: shares of an update's time."""

    seconds: list[float]
    peak: str
    parts: dict[str, float]


def measure(makers: dict[str, Callable[[], Ours | PublishedOrder]], repeats: int, device: str) -> dict[str, Measured]:
    """Arms in turn. Nothing of them is left when it returns, so that the next ones' peak is their own."""
    if is_cuda(device):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    arms = {name: make() for name, make in makers.items()}
    seconds = time_in_turn({name: arm.update for name, arm in arms.items()}, repeats, device)
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if is_cuda(device) else "not measured"
    return {
        name: Measured(seconds[name], peak, shares(arm, repeats) if isinstance(arm, Ours) else {})
        for name, arm in arms.items()
    }


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = parser_of(__doc__, {"cuda": 10, "cpu": 10})
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--output", type=Path, help="also write the table here")
    args = parsed(parser)
    on_gpu = is_cuda(args.device)
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")
    with tempfile.TemporaryDirectory() as folder:
        random_teacher(SHAPES[args.device], Path(folder))
        config = RunConfig(
            output="unused",
            teacher=TeacherConfig(path=folder, cfg_scale=1.5),
            student=StudentConfig(rollout="random_step"),
            train=LoopConfig(steps=10**6, batch_size=args.batch_size, log_every=10**6),
        )
        shared = StudentConfig(rollout="shared")
        eager = replace(config, train=replace(config.train, launch="eager"))
        lora, small = (replace(config, roles=RolesConfig("lora", rank)) for rank in (64, 16))
        makers: dict[str, Callable[[], Ours | PublishedOrder]] = {
            "ours, whole roles": lambda: Ours(config, accelerator),
            "ours, whole roles, shared rollout": lambda: Ours(replace(config, student=shared), accelerator),
            **({"ours, whole roles, kernel by kernel": lambda: Ours(eager, accelerator)} if on_gpu else {}),
            "ours, LoRA roles": lambda: Ours(lora, accelerator),
            "ours, LoRA roles, shared rollout": lambda: Ours(replace(lora, student=shared), accelerator),
            "ours, LoRA roles of rank 16, shared rollout": lambda: Ours(replace(small, student=shared), accelerator),
            REFERENCE: lambda: PublishedOrder(config, accelerator),
        }
        makers = {name: make for name, make in makers.items() if name == REFERENCE or args.arms.search(name)}
        found: dict[str, Measured] = {}
        for names in [[name] for name in makers] if on_gpu else [list(makers)]:
            found |= measure({name: makers[name] for name in names}, args.repeats, args.device)
    reference = statistics.median(found[REFERENCE].seconds)
    rows = []
    for name, measured in found.items():
        median = statistics.median(measured.seconds)
        rows.append([
            name, milliseconds(measured.seconds), f"{args.batch_size / median:.2f}", f"{reference / median:.2f}",
            measured.peak, ", ".join(f"{part} {100 * share:.0f} %" for part, share in measured.parts.items()),
        ])  # fmt: skip
    header = ["update", "ms", "images/s", "speed against published order", "peak", "share of time"]
    shape = SHAPES[args.device]
    text = (
        "# One distillation update\n\n"
        f"{setup(args.device)}; {shape.depth} blocks x {shape.hidden_size}, batch {args.batch_size}, 5 critic updates "
        f"to one of the student, {args.repeats} repeats; median [quartiles].\n\n{table(header, rows)}\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    main()
