"""What a run would be: roles, parameters, memory, steps and cost, from the configuration alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from dar import SiT, SiTConfig, num_parameters
from distill.assets import resolve
from distill.config import LoopConfig, RunConfig, TrainConfig
from distill.training.start import starting_model

# Kept for the backward pass, per token, block and channel: LayerNorm, modulation, q, k, v, attention, gated
# output (the routing's source) and the two MLP widths.
ACTIVATIONS_PER_CHANNEL = 22
BYTES = 4


def forward_flops(config: SiTConfig) -> float:
    """Multiply-adds of one sample's forward pass, times two: the matrix products of all blocks."""
    tokens = (config.input_size // config.patch_size) ** 2
    d = config.hidden_size
    per_block = tokens * ((4 + 2 * config.mlp_ratio) * d * d + 2 * tokens * d) + 6 * d * d
    return 2 * config.depth * per_block


def activation_bytes(config: SiTConfig, rows: int, *, checkpointing: bool) -> float:
    tokens = (config.input_size // config.patch_size) ** 2
    width = 4 if checkpointing else ACTIVATIONS_PER_CHANNEL
    return rows * tokens * config.depth * width * config.hidden_size * BYTES


def print_train_plan(config: TrainConfig) -> None:
    """One role that learns, and its EMA."""
    # A new model is counted, not filled; one from a folder is looked at.
    with torch.device("meta" if config.start.path is None else "cpu"):
        model = starting_model(config)
    params = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = config.train.batch_size // config.train.accumulation
    memory = [
        ("teacher: weights", 4 * params),
        (f"gradients, Adam of {learning:,} that learn", 12 * learning),
        ("EMA", 4 * params),
    ]
    forwards = 3 * config.train.batch_size
    start = f" from {config.start.path}, {config.start.trainable}" if config.start.path else ""
    _print(f"train{start} -> {config.output}", model.config, memory, rows, forwards, config.train)


def print_run_plan(config: RunConfig) -> None:
    """teacher, student, fake_score and the EMA."""
    model = SiT.from_pretrained(resolve(config.teacher.path, "teacher")).config
    params = num_parameters(model)
    steps = config.student.steps
    every = config.dmd.rollout == "every_step"
    trajectories = config.train.batch_size
    rows = trajectories * steps if every else trajectories
    # Passes in units of one sample's forward; a backward pass counts as two.
    rolled_out = trajectories * ((steps - 1) if every else (steps - 1) / 2)
    guided = 2 if config.teacher.cfg_scale != 1 else 1
    critic = rolled_out + rows + 3 * rows
    student = rolled_out + 3 * rows + guided * rows + rows
    forwards = config.fake_score.updates * critic + student
    memory = [
        ("teacher: weights", 4 * params),
        ("student: weights, gradients, Adam", 16 * params),
        ("fake_score: weights, gradients, Adam", 16 * params),
        ("EMA of the student", 4 * params),
    ]
    title = f"run -> {config.output}: {steps} steps from {config.teacher.path}, cfg_scale {config.teacher.cfg_scale:g}"
    _print(title, model, memory, rows // config.train.accumulation, forwards, config.train)


def _print(
    title: str,
    model: SiTConfig,
    memory: Sequence[tuple[str, float]],
    rows: int,
    forwards: float,
    loop: LoopConfig,
) -> None:
    console = Console()
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_row(
        "model",
        f"{model.depth} blocks x {model.hidden_size}, patch {model.patch_size}, routing {model.routing.kind}, "
        f"{num_parameters(model):,} parameters",
    )
    activations = activation_bytes(model, rows, checkpointing=loop.gradient_checkpointing)
    for name, size in [*memory, (f"activations of {rows} rows (estimate)", activations)]:
        table.add_row(name, f"{size / 2**20:,.1f} MiB")
    table.add_row("sum per process (estimate)", f"{(sum(s for _, s in memory) + activations) / 2**30:.2f} GiB")
    table.add_row("updates", f"{loop.steps:,} of {loop.batch_size} samples, accumulation {loop.accumulation}")
    flops = forwards * forward_flops(model)
    table.add_row("cost of an update", f"{forwards:,.0f} sample forwards, {flops / 1e9:,.1f} GFLOP")
    table.add_row("cost of the run", f"{flops * loop.steps / 1e12:,.2f} TFLOP, report not counted")
    table.add_row("precision", loop.mixed_precision)
    console.print(table)
