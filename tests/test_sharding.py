"""What is refused before anything is sharded, and plain models from values; sharding itself: test_processes.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

from dar import SiT, attach_routing
from dar.layers import Block
from distill.config import OptimConfig
from distill.errors import UserError
from distill.models.parameters import materialize, meta_copy
from distill.models.sharding import check_resharding, name_blocks, sharding_plugin
from distill.objectives import RunConfig
from distill.training.checkpoint import load_checkpoint
from distill.training.devices import make_accelerator
from distill.training.learner import Learner
from tests.conftest import tiny_config
from tests.test_cli import refused, train_config, write_idx
from tests.test_resume import save_checkpoint
from tests.tiny_transformers import TINY

ENVIRONMENT = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture
def fsdp(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_nothing_is_sharded_unasked() -> None:
    assert sharding_plugin("no") is None


def test_blocks_are_groups_of_their_own_and_inputs_keep_their_type(fsdp) -> None:
    plugin = sharding_plugin("bf16")
    assert plugin is not None
    model = torch.nn.Sequential(SiT(tiny_config()))  # as what a wrapper holds
    name_blocks(model)
    is_group = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert is_group is not None
    assert [type(module) for module in model.modules() if is_group(module)] == [Block, Block]
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype) == (torch.bfloat16, torch.float32)
    assert not policy.cast_forward_inputs


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_VERSION", "1", "fsdp_version must be 2; got 1"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "must be TRANSFORMER_BASED_WRAP or NO_WRAP; got SIZE_BASED_WRAP"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", r"set train\.gradient_checkpointing=true instead"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params must be false"),
        ("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT", "fsdp_state_dict_type must be SHARDED_STATE_DICT; got FULL_STATE"),
        ("FSDP_IGNORED_MODULES", "routing", "fsdp_ignored_modules must not be set"),
    ],
)
def test_what_is_not_supported_is_named(fsdp, name: str, value: str, message: str) -> None:
    fsdp.setenv(name, value)
    with pytest.raises(UserError, match=f"FSDP: .*{message}"):
        sharding_plugin("no")


def test_fp16_is_refused(fsdp) -> None:
    with pytest.raises(UserError, match=r"train\.mixed_precision must be one of no, bf16; got fp16"):
        sharding_plugin("fp16")


def test_a_process_alone_is_not_trained_unsharded(fsdp, tmp_path: Path, capsys) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert "FSDP needs processes that" in refused(capsys, "train", config)
    assert not (tmp_path / "teacher_run").exists()


def test_processes_that_do_not_find_each_other_do_not_train(monkeypatch, accelerator) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, and each would work alone"):
        make_accelerator(RunConfig("out"))


def test_a_sharded_optimizer_is_adamw(accelerator, tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(type(accelerator), "is_fsdp2", True)
    with pytest.raises(UserError, match=r"FSDP: optim\.name must be adamw; got 'adamw_8bit'"):
        Learner("student", tiny_model, OptimConfig(name="adamw_8bit"), 1, accelerator)


def test_a_checkpoint_is_resumed_as_it_was_written(accelerator, tmp_path: Path) -> None:
    folder = save_checkpoint(accelerator, tmp_path, 1, keep=1)
    (folder / "pytorch_model_fsdp_0").mkdir()
    with pytest.raises(UserError, match=r"step_00000001 was written with FSDP; resume it likewise"):
        load_checkpoint(accelerator, tmp_path)


def test_a_filled_copy_computes_as_the_model_and_holds_the_values_themselves(tiny_model) -> None:
    blank = meta_copy(tiny_model)
    assert {parameter.device.type for parameter in blank.parameters()} == {"meta"}
    copy = materialize(blank, dict(tiny_model.named_parameters()))
    x_t, t, y = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9]), torch.tensor([0, 3])
    assert torch.equal(copy(x_t, t, y), tiny_model(x_t, t, y))
    pairs = zip(copy.parameters(), tiny_model.parameters(), strict=True)
    assert all(ours.data_ptr() == theirs.data_ptr() for ours, theirs in pairs)
    assert {parameter.device.type for parameter in blank.parameters()} == {"meta"}


@pytest.mark.parametrize("reshards", [True, False])
def test_attached_routing_is_not_resharded_in_between(reshards: bool) -> None:
    """What a sublayer wrote within a block may get its gradient before what the block returned."""
    plugin = SimpleNamespace(reshard_after_forward=reshards)
    accelerator: Any = SimpleNamespace(is_fsdp2=True, state=SimpleNamespace(fsdp_plugin=plugin))
    model, _ = TINY["sd3"]()
    check_resharding(model, accelerator)
    attach_routing(model)
    if reshards:
        with pytest.raises(UserError, match="fsdp_reshard_after_forward must be false"):
            check_resharding(model, accelerator)
    else:
        check_resharding(model, accelerator)
