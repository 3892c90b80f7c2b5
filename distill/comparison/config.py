"""What is compared: a base, changed by size, by arm and by seed. One job is one of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.assets import EMBEDDED
from distill.config import EvalConfig, SiTConfig, TrainConfig, build_config, merge_values, read_values
from distill.errors import UserError

GRID = ("base", "sizes", "arms")
NEVER = 10**9  # updates between checkpoints: a job is resumed as a whole or not at all


@dataclass
class ValidationConfig:
    """The held-out loss: `num_images` test images with noise, t and order drawn once from `seed`.

    every: updates between two validations; the last update is always followed by one.
    """

    num_images: int = 500
    every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.every < 1:
            raise UserError(f"validation.num_images and every must be at least 1; got {self}")


@dataclass
class MeasuringConfig:
    """What is drawn of each final EMA model, and on how many held-out images the symptoms are measured."""

    cfg_scale: float = 1.5
    num_steps: int = 25
    symptom_images: int = 200
    evaluate: EvalConfig = field(
        default_factory=lambda: EvalConfig(bootstrap=50, batch_size=100, extractor=EMBEDDED, reference=EMBEDDED)
    )


@dataclass
class ComparisonConfig:
    """Everything but the grid of jobs.

    output: folder of the jobs. report: the Markdown file; pictures and figures lie beside it under its name.
    baselines: the arms that every other is tested against; the first gives the wall-clock of equal time.
    """

    output: str
    report: str
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    baselines: list[str] = field(default_factory=lambda: ["residual"])
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    measuring: MeasuringConfig = field(default_factory=MeasuringConfig)


@dataclass
class TrainingConfig:
    """What defines the training of a job; two that are equal give the same model."""

    train: TrainConfig
    validation: ValidationConfig


@dataclass(frozen=True)
class Job:
    """One model: an arm at a size with a seed. folder: where its results go once it is trained."""

    size: str
    arm: str
    seed: int
    config: TrainingConfig
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.size}/{self.arm}/seed{self.seed}"

    @property
    def model(self) -> SiTConfig:
        model = self.config.train.model
        assert model is not None  # `load_comparison` sees to it
        return model


@dataclass(frozen=True)
class Comparison:
    """A configuration and its jobs: seeds outermost, then sizes, so that a part of them is balanced."""

    config: ComparisonConfig
    jobs: list[Job]

    @property
    def sizes(self) -> list[str]:
        return list(dict.fromkeys(job.size for job in self.jobs))

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(job.arm for job in self.jobs))


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison: the sections `base`, `sizes` and `arms` hold settings of `TrainConfig`.

    An arm's `by_size` holds further changes for single sizes.
    Raises: UserError as `load_config`, naming the job where its settings do not fit.
    """
    values = read_values(path, overrides)
    base, sizes, arms = (_section(values, name, path) for name in GRID)
    config = build_config(ComparisonConfig, values)
    if not config.seeds or len(set(config.seeds)) != len(config.seeds):
        raise UserError(f"seeds must be different numbers, at least one; got {config.seeds}")
    missing = [name for name in config.baselines if name not in arms]
    if missing or not config.baselines:
        raise UserError(f"baselines must name arms ({', '.join(arms)}); got {config.baselines}")
    grid = itertools.product(config.seeds, sizes.items(), arms.items())
    return Comparison(config, [_job(config, base, size, arm, seed) for seed, size, arm in grid])


def _section(values: dict[Any, Any], name: str, path: str | Path) -> dict[str, Any]:
    section = values.pop(name, None)
    if not isinstance(section, dict) or not section:
        raise UserError(f"{path}: {name} must be a section with at least one key; got {section!r}")
    return section


def _job(config: ComparisonConfig, base: dict[str, Any], size: tuple[str, Any], arm: tuple[str, Any], seed: int) -> Job:
    (size_name, size_values), (arm_name, arm_values) = size, arm
    arm_values = dict(arm_values or {})
    by_size = arm_values.pop("by_size", {})
    values = base
    for change in (size_values or {}, arm_values, by_size.get(size_name, {})):
        values = merge_values(values, change)
    name = f"{size_name}/{arm_name}/seed{seed}"
    loop = {"seed": seed, "grid_every": config.validation.every, "save_every": NEVER}
    fixed = {"output": name, "train": loop}
    try:
        train = build_config(TrainConfig, merge_values(values, fixed))
    except UserError as error:
        raise UserError(f"size {size_name}, arm {arm_name}: {error}") from error
    if train.model is None:
        raise UserError(f"size {size_name}, arm {arm_name}: a comparison trains new models; give a section model")
    return Job(size_name, arm_name, seed, TrainingConfig(train, config.validation), Path(config.output, "jobs", name))
