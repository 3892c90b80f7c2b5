"""`dar-distill plan`."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from typing import Any

from dar import SiTConfig
from distill.config import RunConfig, TrainConfig, build_config, read_values
from distill.errors import UserError
from distill.planning import Launch, Plan, named_shape, plan_run, plan_train, shape_in
from distill.planning.tables import plan_to_json, print_plan

STRATEGIES = {"MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp", "NO": "ddp"}


def plan(args: Namespace) -> None:
    """Print the plan of a `run` or a `train` configuration."""
    if args.tflops is not None and not 0 < args.tflops < math.inf:
        raise UserError(f"--tflops must be finite and above 0; got {args.tflops:g}")
    found = plan_of(
        read_values(args.config, args.overrides), named_shape(args.model) if args.model else None, _launch(args)
    )
    if args.json:
        print(plan_to_json(found, args.tflops))
    else:
        print_plan(found, args.tflops)


def plan_of(values: dict[Any, Any], shape: SiTConfig | None, launch: Launch) -> Plan:
    """The plan of plain values by section, of `train` where a section of its own is among them.

    shape: of the model in the folder that the values name; None to look there.

    Raises: UserError as `load_config`, and where the batch cannot be shared out.
    """
    of_train = {field.name for field in fields(TrainConfig)} - {field.name for field in fields(RunConfig)}
    if of_train & set(values):
        config = build_config(TrainConfig, values)
        _check_shares(config.train.batch_size, config.train.accumulation, launch)
        if config.model is not None:
            if shape is not None:
                raise UserError("--model stands for a folder's shape; this configuration has a section model")
            return plan_train(config, config.model, launch)
        assert config.start.path is not None
        return plan_train(config, shape or shape_in(config.start.path, "start.path"), launch)
    config = build_config(RunConfig, values)
    _check_shares(config.train.batch_size, config.train.accumulation, launch)
    return plan_run(config, shape or shape_in(config.teacher.path, "teacher.path"), launch)


def _launch(args: Namespace) -> Launch:
    """Processes and strategy: of accelerate's file, where one is given, and then of the arguments."""
    processes, strategy = 1, "ddp"
    if args.accelerate is not None:
        given = read_values(Path(args.accelerate))
        kind = str(given.get("distributed_type", "NO"))
        if kind not in STRATEGIES:
            raise UserError(f"{args.accelerate}: distributed_type must be one of {', '.join(STRATEGIES)}; got {kind!r}")
        processes, strategy = given.get("num_processes", 1), STRATEGIES[kind]
    processes = args.processes if args.processes is not None else processes
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"--processes must be at least 1; got {processes}")
    return Launch(processes, args.strategy or strategy)


def _check_shares(batch_size: int, accumulation: int, launch: Launch) -> None:
    share = launch.processes * accumulation
    if batch_size % share:
        raise UserError(f"train.batch_size must be a multiple of processes x accumulation = {share}; got {batch_size}")
