"""The configuration of `run`. Each objective brings a section of its own along."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from distill.config import DataConfig, EvalConfig, LoopConfig, RolesConfig, StudentConfig, TeacherConfig, WatchConfig
from distill.config.load import VARIANTS
from distill.errors import UserError

SECTIONS: dict[str, type] = {}
"""The section that each objective takes, by its name (`distill.objectives.register` adds it)."""

VARIANTS["objective"] = SECTIONS


def default_objective() -> Any:
    """Distribution matching distillation with its defaults."""
    return SECTIONS["dmd"]()


@dataclass
class RunConfig:
    """`dar-distill run`: a few-step student from a teacher, and its report.

    objective: what the student learns by, chosen by `objective.name`; its other fields are that objective's own
        `Config`.
    mix: further objectives by name, each with its own `Config`; the student learns by the sum of all, by `weight`.
    data: for objectives that learn from data; none where it is null.
    """

    output: str
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    roles: RolesConfig = field(default_factory=RolesConfig)
    objective: Any = field(default_factory=default_objective, metadata={"variants": SECTIONS})
    mix: dict[str, Any] = field(default_factory=dict, metadata={"sections": SECTIONS})
    data: DataConfig | None = None
    train: LoopConfig = field(default_factory=LoopConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self) -> None:
        if self.objective.name in self.mix:
            raise UserError(f"mix.{self.objective.name} is objective.name, too; give it once")
