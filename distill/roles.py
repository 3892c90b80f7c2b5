"""teacher, student and fake_score from one folder."""

from __future__ import annotations

import copy

from dar import SiT
from distill.assets import resolve
from distill.config import TeacherConfig


def build_roles(config: TeacherConfig) -> tuple[SiT, SiT, SiT]:
    """The frozen teacher, and two trainable copies of it: student and fake_score."""
    teacher = SiT.from_pretrained(resolve(config.path, "teacher"))
    student, fake_score = copy.deepcopy(teacher), copy.deepcopy(teacher)
    return teacher.eval().requires_grad_(False), student, fake_score
