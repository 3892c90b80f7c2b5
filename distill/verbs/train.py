"""Configuration to teacher folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.conditions import ClassLabels, condition_of
from distill.config import TrainConfig
from distill.data import Dataset
from distill.data.base import check_batch_size
from distill.data.checking import check_fits, check_samples
from distill.data.configured import configured_dataset
from distill.files import replace_folder
from distill.models import Backbone, save_model, set_classes
from distill.models.lora import plain_model
from distill.objectives.teacher import TeacherTask
from distill.progress import logger
from distill.training.devices import let_go, make_accelerator
from distill.training.loop import run_loop
from distill.training.run_folder import opened_run
from distill.training.start import starting_model
from distill.verbs.configs import ConfigLike, config_of


@dataclass(frozen=True)
class Trained:
    """teacher: the model's folder, which `load` takes."""

    folder: Path
    teacher: Path


def train(
    config: ConfigLike, overrides: Sequence[str] = (), *, resume: bool = False, from_step: int | None = None
) -> Trained | None:
    """Train by flow matching on data and save the EMA as `output/teacher`.

    Args:
        config: a `TrainConfig`, a dictionary of its sections, a YAML file, or the name of a shipped recipe.
        overrides: such as "train.steps=100". resume: continue the training in its output folder.
        from_step: of the checkpoint to go on from; None for the newest. Later ones are removed.

    Returns: None on all processes but the main one.
    Raises: UserError for what the user can mend, NonFiniteError where the training diverges.
    """
    config = config_of(TrainConfig, config, overrides)
    resume = resume or from_step is not None
    data = configured_dataset(config.data)
    torch.manual_seed(config.train.seed)
    model = starting_model(config, data.condition)
    check_data(data, model, config.data.path)
    check_batch_size(len(data), config.train.batch_size)
    accelerator = make_accelerator(config)
    check_samples(data, config.data)
    task = TeacherTask(config, model, data, accelerator)
    with opened_run(config, accelerator, resume=resume, data=data) as opened:
        if accelerator.is_main_process and task.decoder.note:
            logger.info(f"grids: {task.decoder.note}")
        run_loop(task, config.train, accelerator, opened.folder, resume=opened.resumes, from_step=from_step)
        averaged = task.averaged_model
        del task
        let_go(accelerator)
        accelerator.end_training()
        if not accelerator.is_main_process:
            return None
        teacher = opened.folder / "teacher"
        plain = plain_model(averaged)
        replace_folder(teacher, lambda path: save_model(plain, path))
        return Trained(opened.folder, teacher)


def check_data(data: Dataset, model: Backbone, path: str) -> None:
    """See that `model` can be trained on `data`, and note in it which classes it will know. Raises: UserError."""
    condition = condition_of(model)
    check_fits(data, model.sample_shape, condition, path)
    if isinstance(condition, ClassLabels) and isinstance(data.condition, ClassLabels):
        classes = condition.shown(data.condition, data.labels)
        absent = sorted(set(range(classes.num_classes)) - set(classes.labels.tolist()))
        if absent:
            shown = ", ".join(map(str, absent[:10])) + (", .." if len(absent) > 10 else "")
            logger.warning(
                f"{path}: {len(absent)} of the model's {classes.num_classes} classes have no sample, so they are not "
                f"drawn, distilled or measured: {shown}"
            )
        set_classes(model, classes)
