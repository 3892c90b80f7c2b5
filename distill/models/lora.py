"""LoRA, arXiv:2106.09685, with peft: adapters on the linear layers of all blocks; a routing is trained in full.

peft gives an adapted model its own copy of the routing (`modules_to_save`) and saves it with the adapters. The
original routing stays in the model unchanged.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, TypeVar, cast

from safetensors.torch import load_file, save_file
from torch import nn

from distill.errors import UserError

M = TypeVar("M")

LAYERS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
"""Of a SiT; other models say theirs as `adapted_layers`."""
NAME = "default"
ADAPTER_CONFIG, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
CARD = """---
library_name: peft
---

LoRA of rank {rank} and a routing of its own, trained by dar-distill on the model `{base}`.

    base = dar.SiT.from_pretrained(folder_of_the_base)
    model = peft.PeftModel.from_pretrained(base, this_folder)
"""


def add_adapters(model: nn.Module, rank: int, *, base: str, field: str) -> None:
    """Add adapters to `model` in place. They have no effect at first; only they and the routing are trainable.

    alpha = rank, so the scale of the adapters is 1.

    Args:
        base: name or path of the base model, saved with the adapters.
        field: the setting that enables LoRA, for the error message.

    Raises: UserError if peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise UserError(f"{field} = lora needs peft: pip install 'dar-distill[lora]'") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=getattr(model, "adapted_layers", LAYERS),
        modules_to_save=["routing"] if getattr(model, "routing", None) is not None else None,
        base_model_name_or_path=base,
    )
    _inject(config, model)
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft makes them of the type of what they adapt; an update needs more digits
            parameter.data = parameter.data.float()


def _inject(config: Any, model: nn.Module) -> None:
    """Put the adapters of a peft configuration on `model`, in place; linear layers become `AdaptedLinear`."""
    from peft import inject_adapter_in_model

    from distill.models.adapted_linear import AdaptedLinear

    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, model, NAME)


def has_adapters(model: Any) -> bool:
    return hasattr(model, "peft_config")  # peft sets this attribute


def save_adapters(model: Any, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, in the format that `PeftModel.from_pretrained` reads."""
    from peft import get_peft_model_state_dict

    # False: no embedding is adapted, and peft would ask the Hub to find that out.
    learnt = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    save_file({f"base_model.model.{name}": tensor for name, tensor in learnt.items()}, folder / WEIGHTS_FILE)
    config = model.peft_config[NAME]
    config.save_pretrained(str(folder))
    (folder / "README.md").write_text(CARD.format(rank=config.r, base=config.base_model_name_or_path))


def load_adapters(model: Any, folder: Path) -> None:
    """Put on `model`, in place, the adapters that `save_adapters` wrote. Raises: UserError where they do not fit."""
    try:
        from peft import LoraConfig, set_peft_model_state_dict
    except ImportError as error:
        raise UserError(f"{folder} holds adapters and needs peft: pip install 'dar-distill[lora]'") from error
    config = LoraConfig.from_pretrained(str(folder))
    _inject(config, model)
    tensors = {name.removeprefix("base_model.model."): t for name, t in load_file(folder / WEIGHTS_FILE).items()}
    try:
        found = set_peft_model_state_dict(model, tensors, adapter_name=NAME)
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit its model: {str(error).splitlines()[-1]}") from error
    missing = [name for name in found.missing_keys if f".{NAME}." in name]
    if found.unexpected_keys or missing:
        name = (found.unexpected_keys or missing)[0]
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit its model: {name}")


def plain_model(model: M) -> M:
    """A model without adapters that computes the same: a copy with merged adapters, or `model` if it has none, or saves
    its adapters itself."""
    if not has_adapters(model) or getattr(model, "saves_adapters", False):
        return model
    from peft.tuners.lora import LoraLayer

    plain = cast(Any, copy.deepcopy(model))
    for name, layer in [(n, m) for n, m in plain.named_modules() if isinstance(m, LoraLayer)]:
        layer.merge(safe_merge=True)
        plain.set_submodule(name, layer.get_base_layer())
    plain.routing = plain.routing.modules_to_save[NAME]
    del plain.peft_config
    return plain
