"""teacher, student and fake_score from one folder, and the student into one.

Trained whole, student and fake_score are copies of the teacher. As `lora`, their backbone is the teacher's own
tensors: three models with one backbone, each with its own adapters and routing, none of which knows of the others.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from dar import SiT
from distill.assets import resolve
from distill.config import RolesConfig, TeacherConfig
from distill.files import write_folder
from distill.models.lora import add_adapters, has_adapters, plain_model, save_adapters
from distill.models.parameters import sharing_copy
from distill.sampling.samplers import save_student


def build_roles(teacher: TeacherConfig, roles: RolesConfig) -> tuple[SiT, SiT, SiT]:
    """The frozen teacher, and two models that compute the same and learn: student and fake_score.

    Adapters are drawn from torch's global generator.

    Raises: UserError where peft is needed and missing.
    """
    model = SiT.from_pretrained(resolve(teacher.path, "teacher"))
    student, fake_score = (LEARNING[roles.trainable](model, teacher, roles) for _ in range(2))
    return model.eval().requires_grad_(False), student, fake_score


def _whole(model: SiT, teacher: TeacherConfig, roles: RolesConfig) -> SiT:
    return copy.deepcopy(model)


def _adapted(model: SiT, teacher: TeacherConfig, roles: RolesConfig) -> SiT:
    role = sharing_copy(model, model.parameters())
    add_adapters(role, roles.lora_rank, base=teacher.path, field="roles.trainable")
    return role


LEARNING: dict[str, Callable[[SiT, TeacherConfig, RolesConfig], SiT]] = {"all": _whole, "lora": _adapted}


def write_student(student: SiT, t_list: Tensor, folder: Path) -> SiT:
    """Write `folder/student`, a plain model with its t list, and its adapters, where it has some, to `folder/adapter`.

    Returns: the plain model.
    """
    if has_adapters(student):
        write_folder(folder / "adapter", lambda path: save_adapters(student, path))
    plain = plain_model(student)
    write_folder(folder / "student", lambda path: save_student(plain, t_list, path))
    return plain
