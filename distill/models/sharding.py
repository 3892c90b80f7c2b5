"""Models with parameters sharded over processes: FSDP2, configured by `accelerate launch` or environment variables.

FSDP gathers each block while the block computes, and all other parameters for a whole pass. Every process must take
part whenever a sharded model computes or is gathered. torch's modules for sharding take a second to import, so each
function imports them where it needs them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import fsdp2_prepare_model, parse_flag_from_env
from torch import Tensor

from dar.attached import AttachedRouting
from distill.errors import UserError
from distill.models.parameters import M

GATHERED = {"no": None, "bf16": torch.bfloat16}
"""The dtype in which parameters are gathered, by `train.mixed_precision`; None keeps their own dtype."""


def sharding_plugin(mixed_precision: str) -> FullyShardedDataParallelPlugin | None:
    """The FSDP settings for accelerate; None if FSDP is not requested.

    Gradients are reduced in float32 or wider, and inputs keep their dtype: bf16 would change the value of t.

    Raises: UserError, which names the setting that is not supported.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = FullyShardedDataParallelPlugin()
    _check(plugin, mixed_precision)
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or None  # then each model says
    plugin.cpu_ram_efficient_loading = False  # for models that transformers loads; here every process reads them
    gathered_dtype = GATHERED[mixed_precision]
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=gathered_dtype, reduce_dtype=gathered_dtype and torch.float32, cast_forward_inputs=False
    )
    return plugin


def _check(plugin: FullyShardedDataParallelPlugin, mixed_precision: str) -> None:
    from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
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
        (
            plugin.state_dict_type is StateDictType.SHARDED_STATE_DICT,
            f"fsdp_state_dict_type must be SHARDED_STATE_DICT; got {getattr(plugin.state_dict_type, 'name', None)}",
        ),
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
    """Make `accelerator` shard the models that it prepares.

    Raises: UserError if the process was not started by a launcher.
    """
    if accelerator.distributed_type == DistributedType.NO:
        raise UserError("FSDP needs processes that `accelerate launch` or torchrun started; this one was started alone")
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        if torch.accelerator.is_available():
            raise UserError("FSDP on CPUs takes a GPU where it sees one: hide them, CUDA_VISIBLE_DEVICES=")
        # accelerate switches to FSDP on GPUs only and would use DDP here; its FSDP preparation works with gloo too.
        for state in (PartialState(), accelerator.state):
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin


def name_blocks(model: Any) -> None:
    """Tell accelerate what FSDP gathers by itself: the `block_classes` of whatever backbone is in the model."""
    model._no_split_modules = sorted({name for part in model.modules() for name in getattr(part, "block_classes", ())})


def check_resharding(model: Any, accelerator: Accelerator) -> None:
    """See that what learns can be sharded as it is configured. Raises: UserError.

    FSDP gathers a block for its backward pass when a gradient reaches what the block returned. Attached routing hands
    on what a sublayer wrote within it, whose gradient may come first.
    """
    if not accelerator.is_fsdp2 or not any(isinstance(part, AttachedRouting) for part in model.modules()):
        return
    plugin: Any = accelerator.state.fsdp_plugin
    resharded = plugin.reshard_after_forward
    if resharded is not False:
        raise UserError(
            "FSDP: fsdp_reshard_after_forward must be false for a stock transformer with attached routing; got "
            f"{str(resharded).lower()}"
        )


def shard_frozen(model: M, accelerator: Accelerator) -> M:
    """Shard a frozen model in place, the way `Accelerator.prepare` shards trainable ones."""
    if not accelerator.is_fsdp2:
        return model
    from torch.distributed.fsdp import register_fsdp_forward_method

    name_blocks(model)
    sharded = fsdp2_prepare_model(accelerator, model)
    if hasattr(sharded, "features"):
        register_fsdp_forward_method(sharded, "features")  # it gathers what it needs, as a call does
    return cast(M, sharded)


def is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "full_tensor")  # a method of DTensor


def full_tensor(tensor: Any) -> Tensor:
    """Gather a sharded tensor on every process; return any other tensor unchanged."""
    # The copy drops the padding of tensors that do not divide evenly.
    return tensor.full_tensor().clone() if is_sharded(tensor) else tensor


def local_shard(tensor: Any) -> Tensor:
    """This process's shard of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(tensor: Tensor, other: Any) -> Tensor:
    """Shard a tensor that every process has in full, the way `other` is sharded."""
    if not is_sharded(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
