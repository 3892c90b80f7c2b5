"""The one place that asks accelerate for devices and processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator, PartialState

from distill.config import LoopConfig
from distill.errors import UserError


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Devices, ranks and precision of a training.

    Raises: UserError where the batch cannot be shared out evenly.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with=[*config.trackers] or None)
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
