"""Models whose parameters are sharded over processes: FSDP2, as `accelerate launch` or the environment asks for it.

Each block of a model is gathered while it computes, all that is no block for a whole pass. Every process has to
take part whenever a sharded model computes or is gathered. What torch has for it takes a second to import, and is
imported where it is used.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from torch import Tensor

from dar.layers import Block
from distill.errors import UserError
from distill.models.parameters import M

GATHERED = {"no": None, "bf16": torch.bfloat16}
"""The type that parameters are gathered in, by `train.mixed_precision`; None for their own."""


def sharding_plugin(mixed_precision: str) -> FullyShardedDataParallelPlugin | None:
    """What is asked of FSDP, None where it is not asked for.

    Gradients are added up in float32 or better, and inputs keep their type: in bf16 a t would be another t.

    Raises: UserError naming what is not supported.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin()
    _check(plugin, mixed_precision)
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or [Block.__name__]
    plugin.cpu_ram_efficient_loading = False  # for models that transformers loads; ours every process has read
    narrow = GATHERED[mixed_precision]
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=narrow and torch.float32, cast_forward_inputs=False
    )
    return plugin


def _check(plugin: FullyShardedDataParallelPlugin, mixed_precision: str) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy
    from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

    rules = (
        (plugin.fsdp_version == 2, f"fsdp_version must be 2; got {plugin.fsdp_version}"),
        (
            plugin.auto_wrap_policy is not size_based_auto_wrap_policy,
            "fsdp_auto_wrap_policy must be TRANSFORMER_BASED_WRAP or NO_WRAP; got SIZE_BASED_WRAP",
        ),
        (
            not plugin.activation_checkpointing,
            "fsdp_activation_checkpointing must be false; set train.gradient_checkpointing=true instead",
        ),
        (not isinstance(plugin.cpu_offload, CPUOffloadPolicy), "fsdp_offload_params must be false"),
        (plugin.ignored_modules is None, "fsdp_ignored_modules must not be set: gradients of theirs would differ"),
        (
            mixed_precision in GATHERED,
            f"train.mixed_precision must be one of {', '.join(GATHERED)}; got {mixed_precision}",
        ),
    )
    for is_met, rule in rules:
        if not is_met:
            raise UserError(f"FSDP: {rule}")


def start_sharding(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """See that `accelerator` shards what it prepares.

    Raises: UserError in a process that was started alone.
    """
    if accelerator.distributed_type == DistributedType.NO:
        raise UserError("FSDP needs processes that `accelerate launch` or torchrun started; this one was started alone")
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise UserError("FSDP on CPUs takes a GPU where it sees one: hide them, CUDA_VISIBLE_DEVICES=")
        # accelerate turns to FSDP on GPUs only and would go on with DDP; what it prepares works with gloo as well.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def shard_frozen(model: M, accelerator: Accelerator) -> M:
    """Shard a model that does not learn, in place, as `Accelerator.prepare` does with those that do."""
    return cast(M, fsdp2_prepare_model(accelerator, model)) if accelerator.is_fsdp2 else model


def is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor's own method


def full_tensor(tensor: Any) -> Tensor:
    """A sharded tensor gathered, on every process; any other as it is."""
    # The copy leaves behind the padding of what cannot be cut evenly.
    return tensor.full_tensor().clone() if is_sharded(tensor) else tensor


def local_shard(tensor: Any) -> Tensor:
    """This process's shard of a sharded tensor; any other as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, other: Any) -> Tensor:
    """A tensor that every process has, sharded as `other` is."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
