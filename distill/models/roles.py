"""The models of a distillation, made from one folder: the frozen teacher and trainable copies of it.

With `all`, a copy has its own weights. With `lora`, copies share the teacher's tensors as their backbone, and each
has its own adapters and routing, independent of the other copies.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from distill.config import RolesConfig, TeacherConfig
from distill.errors import UserError
from distill.models.backbone import Backbone
from distill.models.families import load_model
from distill.models.lora import add_adapters
from distill.models.parameters import copy_sharing


def load_teacher(teacher: TeacherConfig) -> Backbone:
    """Load the model of `teacher.path`. It is not frozen yet."""
    return load_model(teacher.path, teacher.prompts)


def trainable_copy(model: Backbone, teacher: TeacherConfig, roles: RolesConfig) -> Backbone:
    """A model that computes the same as `model` and whose trainable parameters `roles.trainable` selects.

    LoRA adapters are initialised from torch's global generator.

    Raises: UserError if peft is needed but not installed.
    """
    return TRAINABLE_COPIES[roles.trainable](model, teacher, roles)


def _full_copy(model: Backbone, teacher: TeacherConfig, roles: RolesConfig) -> Backbone:
    return copy.deepcopy(model)


def _lora_copy(model: Any, teacher: TeacherConfig, roles: RolesConfig) -> Backbone:
    if not hasattr(model, "routing"):
        what = f"{teacher.path} holds a {type(model).__name__}"
        raise UserError(f"roles.trainable = lora needs a SiT or a stock transformer; {what}, take all")
    role = copy_sharing(model, model.parameters())
    add_adapters(role, roles.lora_rank, base=teacher.path, field="roles.trainable")
    return role


TRAINABLE_COPIES: dict[str, Callable[[Backbone, TeacherConfig, RolesConfig], Backbone]] = {
    "all": _full_copy,
    "lora": _lora_copy,
}
