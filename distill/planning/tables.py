"""A plan as text or as JSON. All values are computed, not measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from distill.planning.plan import Plan
from distill.planning.work import DEVICES, UTILISATION

MARGIN_GIB = 1.0  # the device context and allocator fragmentation
NOTES = (
    "Estimates, not measurements. Peak: what the roles hold and the phase that adds most; not counted are data, the "
    "autoencoder and the feature extractor of the report.",
    f"Fits: with {MARGIN_GIB:g} GiB left for the device's context. Hours: {UTILISATION:.0%} of the maker's dense peak "
    "in matrix products, drawing for the report included, processes that never wait.",
)


def print_plan(plan: Plan, tflops: float | None = None) -> None:
    """Print a plan. tflops: the rate that one device achieves, if known, in 10^12 operations per second."""
    console = Console()
    console.print(plan.title, style="bold", highlight=False, markup=False, soft_wrap=True)
    for table in (_summary(plan), _roles(plan), _phases(plan), _devices(plan, tflops)):
        console.print(table)
    for note in NOTES:
        console.print(note, style="dim", highlight=False)


def plan_to_json(plan: Plan, tflops: float | None = None) -> str:
    """The plan as JSON, in bytes, operations and hours."""
    values: dict[str, Any] = {
        "title": plan.title,
        "measured": False,
        "model": plan.subject.values,
        "trainable": plan.trainable,
        "train": asdict(plan.loop),
        "launch": asdict(plan.launch),
        "roles": [asdict(role) for role in plan.roles],
        "ddp_buckets": plan.buckets,
        "phases": [asdict(phase) | {"total": phase.total} for phase in plan.phases],
        "held": plan.held,
        "peak": plan.peak,
        "rows": plan.rows,
        "sample_forwards_per_update": plan.forwards,
        "flops_per_update": plan.flops,
        "flops_of_warmup": plan.warmup_flops,
        "flops_of_watching": plan.watching_flops,
        "flops_of_drawing": plan.drawing_flops,
        "devices": [
            {"name": name, "memory_gib": memory, "fits": fits, "hours": hours}
            for name, memory, fits, hours in _on_devices(plan, tflops)
        ],
        "notes": NOTES,
    }
    return json.dumps(values, indent=2)


def _summary(plan: Plan) -> Table:
    subject, loop, launch = plan.subject, plan.loop, plan.launch
    table = Table(show_header=False, box=None)
    table.add_row(
        "model",
        f"{subject.summary}, {subject.num_parameters:,} parameters",
    )
    table.add_row("learns", plan.trainable)
    checkpointing = "with" if loop.gradient_checkpointing else "without"
    table.add_row("precision", f"mixed: {loop.mixed_precision}; {checkpointing} gradient checkpointing")
    together = "" if launch.processes == 1 else f", {launch.strategy}"
    table.add_row("processes", f"{launch.processes}{together}; {plan.rows} rows at once in each")
    table.add_row("updates", f"{loop.steps:,} of {loop.batch_size} samples, accumulation {loop.accumulation}")
    table.add_row("an update", f"{plan.forwards:,.0f} sample forwards, {_flops(plan.flops)}")
    drawing = f", and {_flops(plan.drawing_flops)} to draw the report" if plan.drawing_flops else ""
    table.add_row("all updates", f"{_flops(plan.training_flops)}{drawing}")
    return table


def _roles(plan: Plan) -> Table:
    table = _table("roles, per process", "parameters", "weights", "optimizer", "gradients")
    for role in plan.roles:
        learning = f"{role.trainable:,} of " if role.trainable != role.parameters and role.trainable else ""
        sizes = [_size(size) for size in (role.weights, role.optimizer, role.gradients)]
        table.add_row(role.name, f"{learning}{role.parameters:,}", *sizes)
    if plan.buckets:
        table.add_row("DDP's buckets", "", _size(plan.buckets), "", "")
    table.add_section()
    table.add_row("held all the time", "", _size(plan.held), "", "in phases")
    return table


def _phases(plan: Plan) -> Table:
    table = _table("phases, per process", "adds", "of which", "peak")
    table.columns[2].justify = "left"
    for phase in plan.phases:
        parts = sorted(phase.parts.items(), key=lambda part: -part[1])
        listed = ", ".join(f"{name} {_size(size)}" for name, size in parts)
        table.add_row(phase.name, _size(phase.total), listed, _size(plan.held + phase.total))
    return table


def _devices(plan: Plan, tflops: float | None) -> Table:
    table = _table("devices", "memory", f"fits {_size(plan.peak)}", "hours")
    for name, memory, fits, hours in _on_devices(plan, tflops):
        verdict = "" if fits is None else "yes" if fits else "no"
        table.add_row(name, f"{memory:g} GiB" if memory else "", verdict, f"{hours:,.1f}" if hours >= 1 else "< 1")
    return table


def _on_devices(plan: Plan, tflops: float | None) -> Sequence[tuple[str, float | None, bool | None, float]]:
    """Name, memory in GiB, whether the plan fits, hours."""
    needed = plan.peak / 2**30 + MARGIN_GIB
    rows: list[tuple[str, float | None, bool | None, float]] = [
        (
            device.name,
            device.memory_gib,
            needed <= device.memory_gib,
            plan.hours(device.tflops(plan.loop.mixed_precision), device.tflops(plan.drawing_precision)),
        )
        for device in DEVICES
    ]
    return rows if tflops is None else [*rows, (f"at {tflops:g} TFLOP/s", None, None, plan.hours(tflops, tflops))]


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, style="bold", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB" if size else "-"


def _flops(flops: float) -> str:
    unit, divisor = next(((unit, d) for unit, d in (("E", 1e18), ("P", 1e15), ("T", 1e12)) if flops >= d), ("G", 1e9))
    return f"{flops / divisor:,.2f} {unit}FLOP"
