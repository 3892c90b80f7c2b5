"""What a run or a training will take, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from dar import SiTConfig
from distill.config import TrainConfig, build_config, read_values
from distill.errors import UserError
from distill.objectives import RunConfig
from distill.planning import Launch, Plan, Subject, named_shape, plan_run, plan_train, shape_in
from distill.verbs.configs import ConfigLike, values_of

STRATEGIES = {"MULTI_GPU": "ddp", "MULTI_CPU": "ddp", "FSDP": "fsdp", "NO": "ddp"}


def plan(
    config: ConfigLike, overrides: Sequence[str] = (), *, model: Sequence[str] = (), launch: Launch | None = None
) -> Plan:
    """The plan of a `run` or a `train` configuration.

    Args:
        config: as `run` and `train` take it; a section of `train`'s own among its values makes it one of `train`.
        model: a named shape in place of the folder's, such as ["SiT-XL/2", "routing.kind=dar"].
        launch: processes and what they share; None for one process.

    Raises: UserError as `load_config`, and where the batch cannot be shared out.
    """
    shape = named_shape(model) if model else None
    return plan_of(values_of(config, overrides), shape, launch or Launch())


def plan_of(values: dict[Any, Any], shape: SiTConfig | Subject | None, launch: Launch) -> Plan:
    """The plan of plain values by section, of `train` where a section of its own is among them.

    shape: of the model in the folder that the values name; None to look there.
    """
    of_train = {field.name for field in fields(TrainConfig)} - {field.name for field in fields(RunConfig)}
    config_type = TrainConfig if of_train & set(values) else RunConfig
    return plan_of_config(build_config(config_type, values), shape, launch)


def plan_of_config(config: RunConfig | TrainConfig, shape: SiTConfig | Subject | None, launch: Launch) -> Plan:
    """As `plan_of`."""
    _check_shares(config.train.batch_size, config.train.accumulation, launch)
    if isinstance(config, RunConfig):
        return plan_run(config, shape or shape_in(config.teacher.path, "teacher.path"), launch)
    if config.model is None:
        assert config.start.path is not None
        return plan_train(config, shape or shape_in(config.start.path, "start.path"), launch)
    if shape is not None:
        raise UserError("--model stands for a folder's shape; this configuration has a section model")
    return plan_train(config, config.model, launch)


def launch_of(processes: int | None, strategy: str | None, accelerate_file: str | None) -> Launch:
    """Processes and strategy: of accelerate's file, where one is given, and then of the arguments."""
    count: Any = 1
    chosen = "ddp"
    if accelerate_file is not None:
        given = read_values(Path(accelerate_file))
        kind = str(given.get("distributed_type", "NO"))
        if kind not in STRATEGIES:
            raise UserError(f"{accelerate_file}: distributed_type must be one of {', '.join(STRATEGIES)}; got {kind!r}")
        count, chosen = given.get("num_processes", 1), STRATEGIES[kind]
    count = processes if processes is not None else count
    if not isinstance(count, int) or count < 1:
        raise UserError(f"--processes must be at least 1; got {count}")
    return Launch(count, strategy or chosen)


def _check_shares(batch_size: int, accumulation: int, launch: Launch) -> None:
    share = launch.processes * accumulation
    if batch_size % share:
        raise UserError(f"train.batch_size must be a multiple of processes x accumulation = {share}; got {batch_size}")
