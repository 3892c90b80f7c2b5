"""`dar-distill train`: configuration to teacher folder."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dar import SiTConfig
from distill.config import TrainConfig, load_config
from distill.data import load_dataset
from distill.data.base import Dataset, check_batch_size
from distill.errors import UserError
from distill.files import write_folder
from distill.models.lora import plain_model
from distill.objectives.flow_matching import TeacherTask
from distill.planning.tables import print_train_plan
from distill.training.devices import make_accelerator
from distill.training.loop import run_loop
from distill.training.run_folder import open_run
from distill.training.start import starting_model


def pretrain(config_path: str, overrides: Sequence[str], *, resume: bool = False, dry_run: bool = False) -> None:
    """Train and save the EMA as `output/teacher`."""
    config = load_config(TrainConfig, config_path, overrides)
    if dry_run:
        print_train_plan(config)
        return
    data = load_dataset(config.data.name, config.data.path)
    torch.manual_seed(config.train.seed)
    model = starting_model(config)
    _check_data(data, model.config, config.data.path)
    check_batch_size(len(data), config.train.batch_size)
    accelerator = make_accelerator(config)
    task = TeacherTask(config, model, data, accelerator)
    folder = open_run(config, accelerator, resume=resume)
    if accelerator.is_main_process and task.decoder.note:
        print(f"grids: {task.decoder.note}")
    run_loop(task, config.train, accelerator, folder, resume=resume)
    averaged = task.averaged_model
    accelerator.end_training()
    if accelerator.is_main_process:
        averaged = plain_model(averaged)
        write_folder(folder / "teacher", lambda path: averaged.save_pretrained(path))
        print(f"teacher: {folder / 'teacher'}")


def _check_data(data: Dataset, model: SiTConfig, path: str) -> None:
    if data.sample_shape != (model.in_channels, model.input_size, model.input_size):
        raise UserError(
            f"{path} has samples of shape {data.sample_shape}; the model takes "
            f"{(model.in_channels, model.input_size, model.input_size)}"
        )
    if data.num_classes > model.num_classes:
        raise UserError(f"{path} has {data.num_classes} classes; model.num_classes = {model.num_classes}")
