"""Trainings of a second, in one process or each of several: `torchrun -m tests.training_jobs FOLDER [VERB]`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from dar import SiT
from distill.cli import main
from distill.config import (
    FlowMatchingConfig,
    LoopConfig,
    OptimConfig,
    RolesConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from distill.evaluation.drawing import Drawing
from distill.models.sharding import is_sharded, local_shard
from distill.objectives import DmdConfig, FakeScoreConfig, RunConfig
from distill.objectives.task import DistillationTask
from distill.objectives.teacher import TeacherTask
from distill.training.checkpoint import checkpoints
from distill.training.devices import make_accelerator
from distill.training.loop import run_loop
from distill.verbs.run import write_student
from tests.conftest import build_roles, critic, models_of, perturbed, tiny_config
from tests.test_resume import Blobs

BASE = "base"
RESUMED = "all_resumed"
# Two micro-batches, and a norm of the gradient that is clipped.
LOOP = LoopConfig(
    steps=3, batch_size=4, accumulation=2, gradient_checkpointing=True, log_every=1, grid_every=3, save_every=2
)
OPTIM = OptimConfig(lr=3e-4, clip_norm=0.1)


def base_model() -> SiT:
    torch.manual_seed(0)
    model = SiT(tiny_config())
    perturbed(model, std=0.15)
    return model


def train(folder: Path, *, resume: bool = False) -> None:
    config = TrainConfig(
        str(folder),
        tiny_config(),
        flow_matching=FlowMatchingConfig(ema_decay=0.5),
        optim=OPTIM,
        train=LOOP,
        grid_steps=2,
    )
    accelerator = make_accelerator(config)
    task = TeacherTask(config, base_model(), Blobs(), accelerator)
    run_loop(task, LOOP, accelerator, folder, resume=resume)
    check_parts(accelerator, task.learner.module)
    averaged = task.averaged_model
    if accelerator.is_main_process:
        averaged.save_pretrained(folder / "model")


def run(folder: Path, trainable: str, *, resume: bool = False) -> None:
    config = RunConfig(
        str(folder),
        teacher=TeacherConfig(path=str(folder.parent / BASE), cfg_scale=3.0),
        student=StudentConfig(steps=2, ema_decay=0.5, optim=OPTIM),
        objective=DmdConfig(fake_score=FakeScoreConfig(updates=2, optim=OPTIM)),
        roles=RolesConfig(trainable, lora_rank=4),
        train=LOOP,
    )
    accelerator = make_accelerator(config)
    torch.manual_seed(1)
    task = DistillationTask(config, models_of(config, build_roles(config.teacher, config.roles)), accelerator, 1.0)
    run_loop(task, LOOP, accelerator, folder, resume=resume)
    check_parts(accelerator, task.objective.setting.teacher.model, task.student.module, critic(task).module)
    averaged = task.averaged_student
    if accelerator.is_main_process:
        write_student(averaged, task.t_list, folder)
        (folder / "student").rename(folder / "model")


def check_parts(accelerator: Accelerator, *models: nn.Module) -> None:
    """With FSDP each process has half of every block, and otherwise all of it."""
    for model in models:
        parameters = list(model.get_submodule("blocks").parameters())
        share = sum(local_shard(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
        assert all(is_sharded(p) == accelerator.is_fsdp2 for p in parameters)
        assert share == (0.5 if accelerator.is_fsdp2 else 1.0)


JOBS: dict[str, Callable[..., None]] = {
    "train": train,
    "all": lambda folder, **options: run(folder, "all", **options),
    "lora": lambda folder, **options: run(folder, "lora", **options),
}


def do_all(folder: Path) -> None:
    """Each job into a folder of its name, where BASE holds a model; one of them once more from its middle."""
    for name, job in JOBS.items():
        (folder / name).mkdir(exist_ok=True)
        job(folder / name)
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.copytree(folder / "all", folder / RESUMED)
        shutil.rmtree(folder / RESUMED / "model")
        shutil.rmtree(checkpoints(folder / RESUMED)[-1])
    state.wait_for_everyone()
    JOBS["all"](folder / RESUMED, resume=True)


def distil(folder: Path) -> None:
    """`dar-distill run` with the shipped teacher, but for the report's pictures, which take their seconds."""
    config = folder / "run.yaml"
    config.write_text(
        f"output: {folder / 'run'}\nstudent: {{steps: 2}}\nfake_score: {{updates: 1}}\n"
        "teacher: {steps: 3}\nwatch: {num_images: 10}\n"
    )

    def report(config: RunConfig, path: Path, drawings: list[Drawing], *_: object) -> tuple[Path, dict]:
        for drawing in drawings:
            assert not any(is_sharded(parameter) for parameter in drawing.sampler.model.parameters())
            assert drawing.images.shape[1:] == (1, 28, 28) and drawing.images.isfinite().all()
        return path, {}

    with patch("distill.verbs.run.write_run_report", report):
        assert main(["run", str(config), "train.steps=1", "train.batch_size=2", "evaluate.num_images=6"]) == 0


def evaluate(folder: Path) -> None:
    """`dar-distill evaluate` of an odd number of images, so that one process has less to draw."""
    few = ["--num-images", "13", "--batch-size", "4", "--steps", "2"]
    assert main(["evaluate", "embedded", *few, "--output", str(folder / "measured")]) == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, *then = sys.argv[1:]
    do_all(Path(place))
    for name in then:
        {"distil": distil, "evaluate": evaluate}[name](Path(place))
