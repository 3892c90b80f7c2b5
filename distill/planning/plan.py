"""The plan of a training: parameters, memory by role and phase, operations. All values are computed, not measured.

All memory is per process. The peak of a phase is the memory that the roles hold all the time plus the largest amount
that the phase adds. Not included: the device context and allocator fragmentation (about 1 GiB), data, the autoencoder
and the feature extractor of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dar import SiTConfig
from distill.config import LoopConfig, TrainConfig
from distill.conformance.conventions import rows_at_once
from distill.objectives import RunConfig, Turn
from distill.objectives.mixture import turns_of
from distill.objectives.teacher import GRID_ROWS as TRAIN_GRID_ROWS
from distill.objectives.watching import GRID_ROWS
from distill.planning.activations import COPIES, FLOAT, Setting
from distill.planning.encoders import encoder_of
from distill.planning.roles import Role, run_roles, train_roles
from distill.planning.subjects import Subject, subject_of
from distill.sampling.samplers import num_in_grid

TEMPORARY, GRADIENTS, GATHERED, GATHERED_MODELS = (
    "temporary tensors",
    "gradients",
    "gathered weights",
    "gathered models",
)


@dataclass(frozen=True)
class Launch:
    """Number of processes and how they share models.

    strategy: `ddp`: every process holds everything; `fsdp`: all models, moments and averages are sharded over them.
    """

    processes: int = 1
    strategy: str = "ddp"

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp" and self.processes > 1


@dataclass(frozen=True)
class Phase:
    """One part of an update: the bytes that it adds at its peak, by kind."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """The plan of a training.

    rows: rows of a micro-batch in one process.
    forwards: sample passes of an update; a backward pass counts as two.
    flops: operations of an update, over all processes.
    warmup_flops: operations of the critic's turns before the first update, over all processes.
    watching_flops: operations for the images of all looks at the student, over all processes.
    drawing_flops: operations for the images of the report, over all processes, in `drawing_precision`.
    """

    title: str
    subject: Subject
    loop: LoopConfig
    launch: Launch
    trainable: str
    roles: list[Role]
    buckets: int
    phases: list[Phase]
    rows: int
    forwards: float
    flops: float
    warmup_flops: float
    watching_flops: float
    drawing_flops: float
    drawing_precision: str

    @property
    def held(self) -> int:
        """Bytes held all the time."""
        return _held(self.roles, self.launch)

    @property
    def peak(self) -> int:
        return self.held + max(phase.total for phase in self.phases)

    @property
    def training_flops(self) -> float:
        """Operations of all updates and looks, over all processes."""
        return self.warmup_flops + self.flops * self.loop.steps + self.watching_flops

    def hours(self, tflops: float, drawing_tflops: float) -> float:
        """Hours if each process runs `tflops` 10^12 operations per second without idle time.

        drawing_tflops: the rate in `drawing_precision`.
        """
        seconds = (self.training_flops / tflops + self.drawing_flops / drawing_tflops) / 1e12
        return seconds / self.launch.processes / 3600


def plan_run(config: RunConfig, model: SiTConfig | Subject, launch: Launch) -> Plan:
    """Plan a distillation: teacher, student, the objective's networks, EMA. The objective's turns define an update."""
    subject = subject_of(model)
    loop, passes = config.train, config.teacher.passes
    turns = turns_of(config)
    setting = _setting(loop, launch, config.roles.trainable, config.roles.lora_rank)
    trajectories = loop.batch_size // launch.processes
    micro = {turn.role: turn.rows // launch.processes // loop.accumulation for turn in turns}
    full_roles = run_roles(config, subject)
    roles = [_share(role, launch) for role in full_roles]
    gradients = {role.name: role.gradients for role in roles}
    free = setting.product_bytes
    cached = subject.copies(setting)
    rollout = {TEMPORARY: subject.forward(trajectories, free), COPIES: cached}
    gathered = _gathered(subject, setting, launch)
    num_full, adapted = int(launch.sharded), int(setting.trainable == "lora" and subject.merges_adapters)
    # Before sharding and without optimizers. EMA, the last role, does not exist yet.
    alone = sum(role.weights for role in full_roles[:-1]) + subject.forward(
        passes * rows_at_once(subject.sample_shape), FLOAT
    )
    phases = [
        Phase("preflight", {GATHERED_MODELS: max(alone - _held(roles, launch), 0)}),
        Phase("rollout", {**rollout, **gathered}),
        *(
            _update_phase(
                f"{turn.role}'s update",
                subject,
                micro[turn.role],
                replace(setting, told_step=turn.told_step),
                loop,
                gradients[turn.role],
                _frozen_passes(subject, turn, micro[turn.role], free, cached),
                gathered,
            )
            for turn in turns
        ),
        Phase("grids", _drawing(subject, config.evaluate.batch_size, num_full)),
    ]
    if config.evaluate.num_images:  # the report loads the teacher again and merges adapters into separate weights
        drawing = _drawing(subject, passes * config.evaluate.batch_size, 1 + max(num_full, adapted))
        phases.append(Phase("report", drawing))
    return Plan(
        title=f"run -> {config.output}: {config.student.steps} steps from {config.teacher.path}, "
        f"cfg_scale {config.teacher.cfg_scale:g}",
        subject=subject,
        loop=loop,
        launch=launch,
        trainable=_trainable_text(setting),
        roles=roles,
        buckets=_buckets(roles, launch),
        phases=_without_zeros(phases),
        rows=micro["student"],
        drawing_precision=config.evaluate.mixed_precision,
        **_work_of_run(config, subject, setting),
    )


def _work_of_run(config: RunConfig, subject: Subject, setting: Setting) -> dict[str, float]:
    """Operations for the whole batch, and sample passes in `forwards`.

    `forwards` counts a backward pass as two passes; `flops` counts its actual operations.
    """
    steps, passes, evaluate = config.student.steps, config.teacher.passes, config.evaluate
    turns = turns_of(config)
    work = subject.work(setting)
    learned = work.update(setting)
    costs = [turn.passes * work.forward + turn.rows * learned for turn in turns]
    drawn, stored = evaluate.num_images, evaluate.reference_for(config.teacher.path) is not None
    reference = num_in_grid(GRID_ROWS, subject.num_distinct, drawn) if stored else drawn
    watch, every = config.watch, config.watch.every or config.train.grid_every
    looks = config.train.steps // every + (config.train.steps % every > 0)
    examples = subject.num_examples
    watched = -(-watch.num_images // examples) * examples
    return {
        "forwards": sum(turn.per_update * (turn.passes + 3 * turn.rows) for turn in turns),
        "flops": sum(turn.per_update * cost for turn, cost in zip(turns, costs, strict=True)),
        "warmup_flops": sum(turn.warmup * cost for turn, cost in zip(turns, costs, strict=True)),
        "drawing_flops": (drawn * steps * (1 + passes) + reference * config.teacher.steps * passes) * work.forward,
        "watching_flops": watched * (looks * steps + watch.teacher_steps * passes) * work.forward,
    }


def _frozen_passes(subject: Subject, turn: Turn, rows: int, product_bytes: int, cached: int) -> int:
    """Memory of the frozen models' passes in a turn, needed while all activations are kept for the backward pass."""
    if not turn.teacher_passes:
        return 0
    widest = subject.forward(turn.teacher_passes * rows, product_bytes)
    return max(widest, subject.forward(rows, product_bytes) + cached)


def plan_train(config: TrainConfig, model: SiTConfig | Subject, launch: Launch) -> Plan:
    """Plan a teacher training: the trainable teacher, its EMA, and what it is aligned with."""
    subject, loop = subject_of(model), config.train
    setting = _setting(loop, launch, config.start.trainable, config.start.lora_rank)
    rows = loop.batch_size // launch.processes // loop.accumulation
    roles = [_share(role, launch) for role in train_roles(config, subject)]
    gathered = _gathered(subject, setting, launch)
    grid_rows = TRAIN_GRID_ROWS * subject.num_examples * (2 if config.grid_cfg_scale != 1 else 1)
    aligned = _alignment(config, subject, setting)
    phases = [
        Phase("alignment", {TEMPORARY: aligned[0] * (loop.batch_size // launch.processes)}),
        _update_phase("update", subject, rows, setting, loop, roles[0].gradients, 0, gathered),
        Phase("grids", _drawing(subject, grid_rows, int(launch.sharded))),
    ]
    start = f" from {config.start.path}" if config.start.path else ""
    return Plan(
        title=f"train{start} -> {config.output}",
        subject=subject,
        loop=loop,
        launch=launch,
        trainable=_trainable_text(setting),
        roles=roles,
        buckets=_buckets(roles, launch),
        phases=_without_zeros(phases),
        rows=rows,
        forwards=3 * loop.batch_size,
        flops=loop.batch_size * (subject.work(setting).update(setting) + aligned[1]),
        warmup_flops=0,
        watching_flops=0,
        drawing_flops=0,
        drawing_precision="no",
    )


def _alignment(config: TrainConfig, subject: Subject, setting: Setting) -> tuple[int, float]:
    """Bytes and operations of one row for what its features are aligned with."""
    if config.repa is None or config.repa.encoder == "stored":
        return 0, 0
    encoder = encoder_of(config.repa, subject.sample_shape)
    if encoder is None:  # the average itself
        return subject.forward(1, setting.product_bytes), subject.work(setting).forward
    return encoder.forward()


def _setting(loop: LoopConfig, launch: Launch, trainable: str, lora_rank: int) -> Setting:
    return Setting(
        product_bytes=FLOAT if loop.mixed_precision == "no" else 2,
        checkpointing=loop.gradient_checkpointing,
        trainable=trainable,
        lora_rank=lora_rank,
        full_copies=not launch.sharded,
    )


def _trainable_text(setting: Setting) -> str:
    return f"lora, rank {setting.lora_rank}" if setting.trainable == "lora" else setting.trainable


def _share(role: Role, launch: Launch) -> Role:
    """The part of a role that one process holds."""
    if not launch.sharded:
        return role
    parts = {name: -(-getattr(role, name) // launch.processes) for name in ("weights", "optimizer", "gradients")}
    return replace(role, **parts)


def _buckets(roles: Sequence[Role], launch: Launch) -> int:
    """DistributedDataParallel sends gradients from its own buckets, which are as large as the gradients."""
    ddp = launch.processes > 1 and not launch.sharded
    return sum(role.gradients for role in roles) if ddp else 0


def _gathered(subject: Subject, setting: Setting, launch: Launch) -> dict[str, int]:
    """FSDP gathers the current block and the next one, and for a whole pass all parameters outside blocks."""
    return {GATHERED: subject.parameters_at_once * setting.product_bytes if launch.sharded else 0}


def _drawing(subject: Subject, rows: int, num_full: int) -> dict[str, int]:
    """Memory of drawing images: models made for it, and a pass without autocast."""
    return {
        GATHERED_MODELS: num_full * subject.num_parameters * subject.bytes_as_loaded,
        TEMPORARY: subject.forward(rows, FLOAT),
    }


def _update_phase(
    name: str,
    subject: Subject,
    rows: int,
    setting: Setting,
    loop: LoopConfig,
    gradients: int,
    beside: int,
    gathered: dict[str, int],
) -> Phase:
    """Forward and backward of R rows, at the peak of memory.

    Gradients grow while kept activations are freed, so they are not in memory in full at the same time. With several
    micro-batches, gradients stay in memory after the first one.

    beside: temporary memory of other models while all activations are kept.
    """
    activations = subject.saved(rows, setting)
    # Until its context ends, autocast caches copies that only the recomputation of a sublayer needs.
    passing = max(subject.copies(setting) - activations.get(COPIES, 0), 0)
    backward = subject.backward(rows, setting)
    there = gradients if loop.accumulation > 1 else 0
    instants = [{**activations, TEMPORARY: beside + passing}, {**activations, TEMPORARY: backward}]
    instants = [{**instant, GRADIENTS: there} for instant in instants] + [{GRADIENTS: gradients, TEMPORARY: backward}]
    return Phase(name, {**max(instants, key=lambda instant: sum(instant.values())), **gathered})


def _held(roles: Sequence[Role], launch: Launch) -> int:
    return _buckets(roles, launch) + sum(role.weights + role.optimizer for role in roles)


def _without_zeros(phases: Sequence[Phase]) -> list[Phase]:
    """Phases that add memory, without parts of zero size."""
    kept_parts = [replace(p, parts={name: size for name, size in p.parts.items() if size}) for p in phases]
    return [phase for phase in kept_parts if phase.parts]
