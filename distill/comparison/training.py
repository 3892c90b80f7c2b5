"""Trains one job with the same code as `train`, and measures its held-out loss outside the timed updates."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dar import SiT
from distill.comparison.config import Job, TrainingConfig, ValidationConfig
from distill.conditions import ConditionBatch, slice_rows, to_device
from distill.config import CONFIG_FILE, TConfig, TrainConfig, config_to_yaml, flat_values, load_config
from distill.data.base import Dataset, noise_of
from distill.data.configured import configured_dataset
from distill.errors import UserError, reading
from distill.files import read_json, write_folder, write_text
from distill.objectives.losses import flow_matching_loss
from distill.objectives.teacher import TeacherTask
from distill.sampling.flow import interpolate
from distill.sampling.schedules import quantile_t
from distill.seeds import generator_for
from distill.training.checkpoint import FOLDER as CHECKPOINTS
from distill.training.devices import make_accelerator
from distill.training.loop import run_loop
from distill.training.run_log import read_log

TRAINING_FILE = "training.json"
MODEL_FOLDER = "model"
VALIDATION_BATCH = 100


@dataclass(frozen=True)
class HeldOut:
    """Samples that evaluate every arm: x0, eps (N, C, H, W), t (N) and y with N rows."""

    x0: Tensor
    eps: Tensor
    t: Tensor
    y: ConditionBatch

    def first(self, num: int) -> HeldOut:
        """The first `num` samples; their t still cover the whole range."""
        return HeldOut(self.x0[:num], self.eps[:num], self.t[:num], slice_rows(self.y, 0, num))


@dataclass(frozen=True)
class CurvePoint:
    """The held-out loss after `step` updates, which took `train_s` seconds without validation."""

    step: int
    train_s: float
    ema: float
    raw: float

    @property
    def better(self) -> float:
        """The lower of the two losses: early on, while the loss falls fast, the EMA lags behind."""
        return min(self.ema, self.raw)


@dataclass(frozen=True)
class Trained:
    """Results of a training, saved beside its model."""

    parameters: int
    curve: list[CurvePoint]

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Trained:
        values = read_json(path, {"parameters": int, "curve": list})
        with reading(path):
            return cls(values["parameters"], [CurvePoint(**point) for point in values["curve"]])


def stratified_t(num: int, config: TConfig, generator: torch.Generator) -> Tensor:
    """One t from each of `num` equally likely strata of a distribution, in random order, (num)."""
    u = (torch.arange(num) + torch.rand(num, generator=generator, dtype=torch.float64)) / num
    return quantile_t(config, u[torch.randperm(num, generator=generator)]).float()


def held_out(data: Dataset, config: ValidationConfig, t: TConfig) -> HeldOut:
    """Held-out samples. They depend only on the data and the validation seed, not on the arm or the training seed."""
    if config.num_images > len(data):
        raise UserError(f"validation.num_images = {config.num_images}; there are {len(data)} held-out images")
    generator = generator_for(config.seed, "validation")
    indices = torch.randperm(len(data), generator=generator)[: config.num_images]
    x0, y = data.batch(indices, noise_of(generator))
    eps = torch.randn(x0.shape, generator=generator)
    return HeldOut(x0, eps, stratified_t(len(x0), t, generator), y)


@torch.no_grad()
def held_out_loss(model: nn.Module, samples: HeldOut) -> float:
    """Mean flow matching loss over the samples, with the model in eval mode."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    total = 0.0
    for first in range(0, len(samples.x0), VALIDATION_BATCH):
        last = first + VALIDATION_BATCH
        x0, eps, t = (part[first:last].to(device) for part in (samples.x0, samples.eps, samples.t))
        y = to_device(slice_rows(samples.y, first, last), device)
        total += flow_matching_loss(model(interpolate(x0, eps, t), t, y), x0, eps).item() * len(x0)
    model.train(training)
    return total / len(samples.x0)


class ValidatedTask:
    """A `TeacherTask` with its own clock, which counts only updates, and with validation in place of grids."""

    def __init__(self, task: TeacherTask, samples: HeldOut) -> None:
        self.task = task
        self.samples = samples
        self.train_s = 0.0

    def check(self) -> None:
        self.task.check()

    def update(self, step: int) -> dict[str, Any]:
        started = time.perf_counter()
        values = self.task.update(step)
        if self.task.accelerator.device.type != "cpu":
            torch.accelerator.synchronize(self.task.accelerator.device)
        self.train_s += time.perf_counter() - started
        return values

    stopped = False

    def is_probed(self, step: int) -> bool:
        return self.task.is_probed(step)

    def probe(self, step: int, folder: Path) -> dict[str, float]:
        return {
            "train_s": self.train_s,
            "ema": held_out_loss(cast(nn.Module, self.task.averaged_model), self.samples),
            "raw": held_out_loss(cast(nn.Module, self.task.trained_model), self.samples),
        }

    def headline(self, values: dict[str, float]) -> str:
        held_out = f"  held-out {values['ema']:.4f}" if "ema" in values else ""
        return self.task.headline(values) + held_out


def build_task(job: Job, data: Dataset) -> TeacherTask:
    """A new model from the job's seed. Arms of one shape start with the same weights, except those of the routing."""
    config = job.config.train
    torch.manual_seed(config.train.seed)
    return TeacherTask(config, SiT(job.model), data, make_accelerator(config))


def num_trainable(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def load_data(config: TrainConfig, split: str) -> Dataset:
    return configured_dataset(config.data, split)


def train_job(job: Job, data: Dataset, samples: HeldOut) -> None:
    """Train the job's model and write its folder atomically."""
    write_folder(job.folder, lambda folder: _train_into(folder, job, data, samples))


def _train_into(folder: Path, job: Job, data: Dataset, samples: HeldOut) -> None:
    write_text(folder / CONFIG_FILE, config_to_yaml(job.config))
    task = build_task(job, data)
    run_loop(ValidatedTask(task, samples), job.config.train.train, task.accelerator, folder)
    curve = [
        CurvePoint(int(record["step"]), record["train_s"], record["ema"], record["raw"])
        for record in read_log(folder)
        if "ema" in record
    ]
    averaged = task.averaged_model
    assert isinstance(averaged, SiT)
    averaged.save_pretrained(folder / MODEL_FOLDER)
    Trained(num_trainable(cast(nn.Module, task.trained_model)), curve).save(folder / TRAINING_FILE)
    shutil.rmtree(folder / CHECKPOINTS)  # the loop writes a checkpoint at the end
    task.accelerator.free_memory()


def is_trained(job: Job) -> bool:
    """Whether the job's model exists.

    Raises: UserError if the folder holds a job of another configuration.
    """
    if not job.folder.exists():
        return False
    check_same_config(job.folder, load_config(TrainingConfig, job.folder / CONFIG_FILE), job.config)
    return True


def check_same_config(folder: Path, saved: object, wanted: object) -> None:
    """Raise UserError, which names a setting that differs, if a folder was trained with another configuration."""
    if saved != wanted:
        raise UserError(
            f"{folder} was trained with another configuration ({_difference(saved, wanted)}); "
            f"choose another output, or remove the folder to train it anew"
        )


def _difference(saved: object, wanted: object) -> str:
    """The first setting that differs, by its dotted name, with both values."""
    old, new = flat_values(saved), flat_values(wanted)
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key}: {old.get(key)} there, {new.get(key)} here"
