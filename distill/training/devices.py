"""Devices and processes, through accelerate."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin

from distill.config import LoopConfig, TrainingConfig, flat_values
from distill.errors import UserError
from distill.models.launching import Captured, Launch, eager
from distill.models.sharding import sharding_plugin, start_sharding
from distill.processes import check_started
from distill.progress import logger


def make_accelerator(run: TrainingConfig) -> Accelerator:
    """The accelerator of a training run: devices, ranks and precision. `start_trackers` starts its trackers.

    Raises: UserError if the batch does not divide evenly over processes, processes do not find each other, the FSDP
        settings are not supported, or a precision or a tracker is not available here.
    """
    config = run.train
    plugin = sharding_plugin(config.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=[*config.trackers] or None,
        project_dir=Path(run.output).expanduser(),
        fsdp_plugin=plugin,
        # Learners accumulate gradients themselves, so environment variables must not change this.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if config.mixed_precision == "fp16" and accelerator.scaler is None:
        device = accelerator.device.type
        raise UserError(f"train.mixed_precision = fp16 needs a GPU, and this is {device}; take bf16 or no")
    check_started(accelerator.num_processes)
    if plugin is not None:
        start_sharding(accelerator, plugin)
    share = accelerator.num_processes * config.accumulation
    if config.batch_size % share:
        raise UserError(
            f"train.batch_size must be a multiple of processes x accumulation = {share}; got {config.batch_size}"
        )
    # accelerate silently skips trackers that are not installed.
    missing = set(config.trackers) - {"all", *map(str, accelerator.log_with)}
    if missing:
        raise UserError(f"train.trackers: {', '.join(sorted(missing))} is not installed")
    return accelerator


def start_trackers(accelerator: Accelerator, run: TrainingConfig) -> None:
    """Start the trackers, if any, with the configuration of the run; some write into its folder."""
    if run.train.trackers:
        accelerator.init_trackers("dar-distill", config={name: str(value) for name, value in flat_values(run).items()})


def launch_for(config: LoopConfig, accelerator: Accelerator) -> Launch:
    """How the updates of this training are launched.

    Raises: UserError for `train.launch = graph` where an update cannot be captured.
    """
    if config.launch == "eager":
        return eager
    hindrance = _hindrance(accelerator)
    if hindrance is None:
        return partial(Captured, strict=config.launch == "graph")
    if config.launch == "graph":
        raise UserError(f"train.launch = graph is not possible {hindrance}; take auto or eager")
    if accelerator.device.type == "cuda":
        logger.info(f"kernels are launched one by one: CUDA graphs are not possible {hindrance}")
    return eager


def _hindrance(accelerator: Accelerator) -> str | None:
    if accelerator.device.type != "cuda":
        return f"on this device, {accelerator.device.type}"
    if accelerator.is_fsdp2:
        return "with sharded weights"
    if accelerator.num_processes > 1:
        return f"in {accelerator.num_processes} processes, which exchange gradients"
    if accelerator.scaler is not None:
        return "with fp16, whose loss scale the host decides on"
    return None


def let_go(accelerator: Accelerator) -> None:
    """Free models and optimizers that were prepared and that no one else holds any more.

    Wrappers hold themselves, and their process group, in circles: without a collection the memory would stay, and the
    group would be taken down while the interpreter ends.
    """
    accelerator.free_memory()
    gc.collect()
    accelerator.wait_for_everyone()
