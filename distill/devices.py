"""The one place that asks accelerate for devices and processes."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator, PartialState

from distill.config import LoopConfig
from distill.errors import UserError
from distill.sharding import sharding_plugin, start_sharding


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Devices, ranks and precision of a training.

    Raises: UserError where the batch cannot be shared out evenly, processes do not find each other, or FSDP is asked
        for as it is not supported.
    """
    plugin = sharding_plugin(config.mixed_precision)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision, log_with=[*config.trackers] or None, fsdp_plugin=plugin
    )
    started = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if started > accelerator.num_processes:
        raise UserError(
            f"{started} processes were started, and each would train alone: accelerate finds no GPU; on CPUs set "
            "ACCELERATE_USE_CPU=true"
        )
    if plugin is not None:
        start_sharding(accelerator, plugin)
    share = accelerator.num_processes * config.accumulation
    if config.batch_size % share:
        raise UserError(
            f"train.batch_size must be a multiple of processes x accumulation = {share}; got {config.batch_size}"
        )
    if config.trackers:
        accelerator.init_trackers("dar-distill")
    return accelerator


def default_device() -> torch.device:
    """The device of a single process, as accelerate picks it."""
    device = PartialState().device
    assert device is not None
    return device
