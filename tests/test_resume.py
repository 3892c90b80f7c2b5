"""4 steps = 2 + save + load + 2, bit for bit; checkpoints are whole or not there."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dar import SiT
from dar.checksums import CHECKSUMS_FILE
from distill.conditions import ClassLabels
from distill.config import DataConfig, FlowMatchingConfig, LoopConfig, RolesConfig, TrainConfig, load_config
from distill.data.base import Dataset, Noise
from distill.data.npz import NpzDataset
from distill.errors import NonFiniteError, UserError
from distill.models.parameters import trainable_parameters
from distill.objectives import RunConfig
from distill.objectives.task import DistillationTask
from distill.objectives.teacher import TeacherTask
from distill.training.checkpoint import FOLDER, checkpoints, load_checkpoint
from distill.training.loop import Counter, TimeEstimate, run_loop
from distill.training.run_folder import CONFIG_FILE, claim_folder, opened_run
from distill.training.run_log import read_log
from distill.training.saving import Saver
from tests.conftest import build_roles, critic, models_of, tiny_config, without_time


class Blobs:
    """Eight images, three classes, each time with a little noise."""

    sample_shape = (1, 8, 8)
    condition = ClassLabels(3)
    labels = torch.arange(8) % 3

    def __len__(self) -> int:
        return 8

    def batch(self, indices: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.linspace(-1, 1, 8).view(8, 1, 1, 1).expand(8, 1, 8, 8)
        images = images[indices]
        return images + 0.1 * noise(images.shape), self.labels[indices]


def teacher_task(folder: Path, steps: int, accumulation: int = 1) -> tuple[TeacherTask, Accelerator, LoopConfig]:
    loop = LoopConfig(steps=steps, batch_size=4, accumulation=accumulation, log_every=1, grid_every=2, save_every=2)
    config = TrainConfig(
        str(folder), tiny_config(), flow_matching=FlowMatchingConfig(ema_decay=0.9), train=loop, grid_steps=2
    )
    data: Dataset = Blobs()
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    return TeacherTask(config, SiT(tiny_config()), data, accelerator), accelerator, loop


def distillation_task(config: RunConfig, model: SiT) -> tuple[DistillationTask, Accelerator]:
    accelerator = Accelerator(cpu=True)
    folder = Path(config.output).with_name("base")
    model.save_pretrained(folder)
    roles = build_roles(replace(config.teacher, path=str(folder)), config.roles)
    return DistillationTask(config, models_of(config, roles), accelerator, 1.0), accelerator


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> Path:
    """One, which is whole when this returns."""
    with Saver(accelerator, folder, keep) as saver:
        saver.save(step)
    return checkpoints(folder)[-1]


def resumed(folder: Path) -> None:
    task, accelerator, loop = teacher_task(folder, 2)
    run_loop(task, loop, accelerator, folder, resume=True)


def state_of(*modules: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for module in modules for value in module.state_dict().values()]


def test_teacher_training_resumes_bit_exactly(tmp_path: Path) -> None:
    folders = tmp_path / "whole", tmp_path / "parts"
    states = []
    for folder, stops in zip(folders, ([4], [2, 4]), strict=True):
        folder.mkdir()
        for i, stop in enumerate(stops):
            task, accelerator, loop = teacher_task(folder, 4)
            loop = replace(loop, steps=stop)
            run_loop(task, loop, accelerator, folder, resume=i > 0)
        states.append(state_of(task.learner.module, task.ema.module))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert without_time(folders[0]) == without_time(folders[1])
    assert [record["step"] for record in read_log(folders[1])] == [1, 2, 3, 4]


def test_updates_are_checked_where_they_are_saved_and_where_they_are_logged(tmp_path: Path) -> None:
    """Not at each, since the host waits for it."""
    task, accelerator, loop = teacher_task(tmp_path, 7)
    task.is_probed = lambda step: False
    update, check = task.update, task.check
    updates: list[int] = []
    checked: list[int] = []
    task.update = lambda step: updates.append(step) or update(step)
    task.check = lambda: checked.append(len(updates)) or check()
    run_loop(task, replace(loop, log_every=2, save_every=3), accelerator, tmp_path)
    assert checked == [1, 2, 3, 4, 6, 7]


def test_a_teacher_that_diverged_is_told_where_it_is_checked(tmp_path: Path) -> None:
    task, *_ = teacher_task(tmp_path, 2)
    with torch.no_grad():
        next(task.learner.module.parameters()).fill_(math.nan)
    task.update(0)
    with pytest.raises(NonFiniteError, match=r"^teacher: the loss is not finite in its update 1"):
        task.check()


def test_memory_is_given_back_after_looks_and_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after each update, whose tensors the next one allocates again."""
    task, accelerator, loop = teacher_task(tmp_path, 7)
    task.is_probed = lambda step: step == 2
    task.probe = lambda step, folder: {}
    update = task.update
    updates: list[int] = []
    given_back: list[int] = []
    task.update = lambda step: updates.append(step) or update(step)
    monkeypatch.setattr("distill.training.loop.give_back_freed_memory", lambda: given_back.append(len(updates)))
    run_loop(task, replace(loop, log_every=1, save_every=3), accelerator, tmp_path)
    assert given_back == [2, 3, 6, 7]


def test_a_run_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    def task_and_loop():
        task, accelerator, loop = teacher_task(tmp_path, 4)
        return task, accelerator, replace(loop, save_every=1, keep=4)

    task, accelerator, loop = task_and_loop()
    run_loop(task, loop, accelerator, tmp_path)
    whole = state_of(task.learner.module, task.ema.module)
    task, accelerator, loop = task_and_loop()
    with pytest.raises(UserError, match=r"--from 7: .* has step_00000001, step_00000002, step_00000003"):
        run_loop(task, loop, accelerator, tmp_path, resume=True, from_step=7)
    for back, steps in ((3, 3), (1, 2)):  # of what came later nothing is left
        task, accelerator, loop = task_and_loop()
        run_loop(task, replace(loop, steps=steps), accelerator, tmp_path, resume=True, from_step=back)
        assert [path.name for path in checkpoints(tmp_path)] == [f"step_{step:08d}" for step in range(1, steps + 1)]
        assert [record["step"] for record in read_log(tmp_path)] == list(range(1, steps + 1))
    task, accelerator, loop = task_and_loop()
    run_loop(task, loop, accelerator, tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, state_of(task.learner.module, task.ema.module), strict=True))


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_distillation_resumes_bit_exactly(tmp_path, run_config: RunConfig, tiny_model: SiT, trainable: str) -> None:
    run_config = replace(run_config, roles=RolesConfig(trainable, lora_rank=4))
    states = []
    for name, stops in (("whole", [4]), ("parts", [2, 4])):
        folder = tmp_path / name
        folder.mkdir()
        for i, stop in enumerate(stops):
            torch.manual_seed(i)  # what adapters start from must not matter after a checkpoint
            task, accelerator = distillation_task(run_config, tiny_model)
            run_loop(task, replace(run_config.train, steps=stop), accelerator, folder, resume=i > 0)
        states.append(state_of(task.student.module, critic(task).module, task.ema.module))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert without_time(tmp_path / "whole")[-1] == without_time(tmp_path / "parts")[-1]


def test_what_was_gathered_for_the_log_is_resumed(tmp_path: Path, run_config: RunConfig, tiny_model: SiT) -> None:
    loop = replace(run_config.train, log_every=4)
    for name, stops in (("whole", [4]), ("parts", [3, 4])):
        for i, stop in enumerate(stops):
            task, accelerator = distillation_task(replace(run_config, train=loop), tiny_model)
            (tmp_path / name).mkdir(exist_ok=True)
            run_loop(task, replace(loop, steps=stop), accelerator, tmp_path / name, resume=i > 0)
    whole, parts = (without_time(tmp_path / name)[-1] for name in ("whole", "parts"))
    assert whole["step"] == 4 and whole == pytest.approx(parts, rel=1e-6)


def test_the_last_line_of_the_log_has_every_figure(tmp_path: Path, run_config: RunConfig, tiny_model: SiT) -> None:
    for steps, grid_every in ((5, 100), (6, 3)):
        config = replace(run_config, train=replace(run_config.train, steps=steps, log_every=2, grid_every=grid_every))
        folder = tmp_path / str(steps)
        folder.mkdir()
        task, accelerator = distillation_task(config, tiny_model)
        run_loop(task, config.train, accelerator, folder)
        records = read_log(folder)
        assert [record["step"] for record in records] == ([1, 2, 4, 5] if steps == 5 else [1, 2, 3, 4, 6])
        assert all({"fake_score/lag", "x0_gap", "std_drift"} <= set(record) for record in records)


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_a_checkpoint_holds_what_learns(tmp_path, run_config: RunConfig, tiny_model: SiT, trainable: str) -> None:
    task, accelerator = distillation_task(replace(run_config, roles=RolesConfig(trainable, lora_rank=4)), tiny_model)
    folder = save_checkpoint(accelerator, tmp_path, 1, keep=1)
    for role, file in ((task.student, "model.safetensors"), (critic(task), "model_1.safetensors")):
        saved = load_file(folder / file)
        assert set(saved) == set(trainable_parameters(role.module))
        assert "pos_embed" not in saved and any(name.startswith("routing.") for name in saved)
    averages = torch.load(folder / "custom_checkpoint_0.pkl")["averages"]
    assert set(averages) == set(trainable_parameters(task.student.module))


def test_a_checkpoint_of_another_model_is_refused(tmp_path, run_config: RunConfig, tiny_model: SiT) -> None:
    task, accelerator = distillation_task(run_config, tiny_model)
    save_checkpoint(accelerator, tmp_path, 1, keep=1)
    before = state_of(task.student.module)
    task, accelerator = distillation_task(replace(run_config, roles=RolesConfig("lora", lora_rank=4)), tiny_model)
    with pytest.raises(UserError, match=r"model\.safetensors is of another model than this; they differ in blocks\.0"):
        load_checkpoint(accelerator, tmp_path)
    assert len(before) < len(state_of(task.student.module))


def test_a_checkpoint_that_asks_to_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "harm"),)

    task, accelerator, loop = teacher_task(tmp_path, 2)
    run_loop(task, loop, accelerator, tmp_path)
    for number in (0, 1):  # the EMA's state and the loop's
        path = checkpoints(tmp_path)[-1] / f"custom_checkpoint_{number}.pkl"
        whole = path.read_bytes()
        torch.save(Harm(), path)
        with pytest.raises(ValueError, match=rf"custom_checkpoint_{number}\.pkl asks to run posix\.mkdir"):
            resumed(tmp_path)
        assert not (tmp_path / "harm").exists()
        path.write_bytes(whole)


def test_the_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 4)
    run_loop(task, replace(loop, steps=3, save_every=2, keep=5), accelerator, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99}) + '\n{"step": 100, "cut')
    task, accelerator, loop = teacher_task(tmp_path, 4)
    run_loop(task, loop, accelerator, tmp_path, resume=True)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 2, 3, 4]


def test_time_left_is_told_by_what_follows_the_first_update() -> None:
    estimate = TimeEstimate(10)
    assert [estimate.text(step, seconds) for step, seconds in ((1, 9.0), (2, 10.0), (4, 12.0), (10, 18.0))] == [
        "9 s", "10 s, 8 s left", "12 s, 6 s left", "18 s, 0 s left",
    ]  # fmt: skip


def test_keeps_the_newest_k(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 6)
    run_loop(task, replace(loop, save_every=1, keep=2), accelerator, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000005", "step_00000006"]


def test_resume_without_a_checkpoint_is_an_error(tmp_path: Path, accelerator: Accelerator) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_checkpoint(accelerator, tmp_path)


def test_a_checkpoint_of_another_version_is_told_from_a_damaged_one(
    tmp_path: Path, run_config: RunConfig, tiny_model: SiT
) -> None:
    task, accelerator = distillation_task(run_config, tiny_model)
    run_loop(task, replace(run_config.train, steps=1), accelerator, tmp_path)
    (checkpoints(tmp_path)[0] / "custom_checkpoint_1.pkl").unlink()
    (checkpoints(tmp_path)[0] / CHECKSUMS_FILE).unlink()
    task, accelerator = distillation_task(run_config, tiny_model)
    with pytest.raises(UserError, match=r"holds 3 states .*, this version keeps 4: another version wrote it"):
        run_loop(task, run_config.train, accelerator, tmp_path, resume=True)


def test_a_diverged_run_keeps_its_last_checkpoint(tmp_path: Path, run_config: RunConfig, tiny_model: SiT) -> None:
    task, accelerator = distillation_task(run_config, tiny_model)
    run_loop(task, replace(run_config.train, steps=2, save_every=1), accelerator, tmp_path)
    with torch.no_grad():
        next(task.student.module.parameters()).fill_(float("nan"))
    before = state_of(critic(task).module)
    task.update(2)
    with pytest.raises(NonFiniteError, match=r"fake_score: the loss is not finite in its update 6"):
        task.check()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(critic(task).module), strict=True))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000001", "step_00000002"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    task, accelerator, _ = teacher_task(tmp_path, 4)
    save_checkpoint(accelerator, tmp_path, 1, keep=1)
    with torch.no_grad():
        next(iter(trainable_parameters(task.learner.module).values()))[0] = float("inf")
    with pytest.raises(NonFiniteError, match="the weights are not finite after step 2"):
        save_checkpoint(accelerator, tmp_path, 2, keep=1)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["step_00000001"]


def test_a_folder_with_another_run_is_refused(tmp_path: Path, run_config: RunConfig, accelerator: Accelerator) -> None:
    folder = tmp_path / "run"
    claim_folder(folder, run_config, resume=False)
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(UserError, match="is not empty"):
        claim_folder(folder, run_config, resume=False)
    with (
        pytest.raises(UserError, match="holds no run"),
        opened_run(replace(run_config, output=str(tmp_path / "none")), accelerator, resume=True),
    ):
        pass
    claim_folder(folder, run_config, resume=True)
    changed = replace(run_config, student=replace(run_config.student, steps=8))
    with pytest.raises(UserError, match=r"differs from .*config\.yaml: student\.steps is 2 there, 8 here$"):
        claim_folder(folder, changed, resume=True)


def test_what_is_measured_may_change_between_parts(tmp_path: Path, run_config: RunConfig) -> None:
    folder = tmp_path / "run"
    claim_folder(folder, run_config, resume=False)
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    changed = replace(run_config, evaluate=replace(run_config.evaluate, num_images=50, reference="elsewhere.npz"))
    claim_folder(folder, changed, resume=True)
    assert load_config(RunConfig, folder / CONFIG_FILE) == changed


def test_a_folder_that_was_moved_or_is_to_be_extended_is_resumed(tmp_path: Path, run_config: RunConfig) -> None:
    claim_folder(tmp_path / "run", run_config, resume=False)
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    config = replace(run_config, output=str(moved), train=replace(run_config.train, steps=9))
    claim_folder(moved, config, resume=True)
    with pytest.raises(UserError, match=r"train\.steps is 9 there, 4 here"):
        claim_folder(moved, run_config, resume=True)


def test_a_batch_cut_up_otherwise_gives_the_same(tmp_path: Path, run_config: RunConfig) -> None:
    """A run that goes on elsewhere, in smaller pieces, and from a folder that was moved."""
    for name, second in (("whole", 1), ("parts", 2)):
        folder = tmp_path / name
        folder.mkdir()
        task, accelerator, loop = teacher_task(folder, 4)
        run_loop(task, replace(loop, steps=2), accelerator, folder)
        if second == 2:
            (tmp_path / "elsewhere").mkdir()
            folder = folder.rename(tmp_path / "elsewhere" / name)
        task, accelerator, loop = teacher_task(folder, 4, accumulation=second)
        run_loop(task, loop, accelerator, folder, resume=True)
    whole, parts = without_time(tmp_path / "whole"), without_time(tmp_path / "elsewhere" / "parts")
    assert len(whole) == 4 and whole == [pytest.approx(record, rel=1e-6) for record in parts]
    claim_folder(tmp_path / "run", run_config, resume=False)
    (tmp_path / "run" / "checkpoints" / "step_00000001").mkdir(parents=True)
    claim_folder(tmp_path / "run", replace(run_config, train=replace(run_config.train, accumulation=2)), resume=True)
    with pytest.raises(UserError, match=r"train\.batch_size is 4 there, 8 here"):
        claim_folder(tmp_path / "run", replace(run_config, train=replace(run_config.train, batch_size=8)), resume=True)


def test_other_data_are_noticed(tmp_path: Path, run_config: RunConfig, accelerator: Accelerator) -> None:
    def data(labels: list[int]) -> NpzDataset:
        return NpzDataset(np.zeros((len(labels), 8, 8), np.uint8), np.array(labels))

    def opened(labels: list[int], resume: bool = True) -> Path:
        with opened_run(run_config, accelerator, resume=resume, data=data(labels)) as run:
            return run.folder

    folder = opened([0, 1, 2], resume=False)
    (folder / "checkpoints" / "step_00000001").mkdir(parents=True)
    opened([0, 1, 2])
    with pytest.raises(UserError, match="data have changed since the run began: num_samples was 3, is 4"):
        opened([0, 1, 2, 2])
    with pytest.raises(UserError, match="data have changed since the run began: labels_sha256"):
        opened([0, 2, 1])


def test_output_inside_what_is_read_is_refused(tmp_path: Path, run_config: RunConfig, accelerator: Accelerator) -> None:
    teacher = replace(run_config.teacher, path=str(tmp_path / "teacher"))
    config = replace(run_config, teacher=teacher, output=str(tmp_path / "teacher" / "run"))
    with pytest.raises(UserError, match=r"output = .* lies inside teacher\.path"):
        opened_run(config, accelerator, resume=False).__enter__()
    data = DataConfig("npz", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"output = .* lies inside data\.path"):
        inside = replace(run_config, data=data, output=str(tmp_path / "data" / "x"))
        opened_run(inside, accelerator, resume=False).__enter__()


def test_a_look_that_fails_does_not_lose_the_updates(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 2)

    def probe(step: int, folder: Path) -> dict[str, float]:
        raise AssertionError("no picture")

    task.probe = probe
    with pytest.raises(AssertionError, match="no picture"):
        run_loop(task, loop, accelerator, tmp_path)
    assert checkpoints(tmp_path)[-1].name == "step_00000002"


def test_an_output_at_home(tmp_path: Path, run_config: RunConfig, accelerator: Accelerator, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with opened_run(replace(run_config, output="~/x"), accelerator, resume=False) as run:
        folder = run.folder
    assert folder == tmp_path / "home" / "x" and (folder / CONFIG_FILE).is_file()


@pytest.fixture(scope="module")
def twice_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after its updates 1 and 2."""
    folder = tmp_path_factory.mktemp("twice")
    task, accelerator, loop = teacher_task(folder, 2)
    run_loop(task, replace(loop, save_every=1), accelerator, folder)
    return folder


def flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[len(whole) * 2 // 3] ^= 1
    path.write_bytes(whole)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, halve, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"]
)
def test_a_damaged_checkpoint_is_named(
    twice_saved: Path, tmp_path: Path, name: str, damage: Callable[[Path], object]
) -> None:
    """And the whole one before it is offered, not taken."""
    folder = shutil.copytree(twice_saved, tmp_path / "run")
    damage(checkpoints(folder)[-1] / name)
    offered = r".*; step_00000001 before it is whole, go on from it with --from 1$"
    with pytest.raises(
        UserError, match=rf"step_00000002/{re.escape(name)} is (missing|damaged|not as it was)" + offered
    ):
        resumed(folder)
    assert [path.name for path in checkpoints(folder)] == ["step_00000001", "step_00000002"]
    task, accelerator, loop = teacher_task(folder, 2)
    run_loop(task, loop, accelerator, folder, from_step=1)
    flip(checkpoints(folder)[0] / name)
    damage(checkpoints(folder)[-1] / name)
    with pytest.raises(UserError, match=r"; none before it is whole$"):
        resumed(folder)


def test_a_process_that_is_lost_meanwhile_is_no_damage(twice_saved: Path, tmp_path: Path, monkeypatch) -> None:
    folder = shutil.copytree(twice_saved, tmp_path / "run")

    def lost(*_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")

    monkeypatch.setattr("distill.training.checkpoint.load_state", lost)
    with pytest.raises(RuntimeError, match=r"^\[gloo/transport"):
        resumed(folder)


def test_a_checkpoint_without_checksums_is_taken_and_said(twice_saved: Path, tmp_path: Path, caplog) -> None:
    folder = shutil.copytree(twice_saved, tmp_path / "run")
    (checkpoints(folder)[-1] / CHECKSUMS_FILE).unlink()
    with caplog.at_level("INFO", logger="distill"):
        resumed(folder)
    assert f"step_00000002 has no {CHECKSUMS_FILE}, as others or earlier versions write it" in caplog.text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"step": -5}, "is damaged or of another model: its step must be a whole number from 0; it is -5; step_0"),
        ({"step": 2.0}, "is damaged or of another model: its step must be a whole number from 0; it is 2.0"),
        ({"step": 10**9}, "says that it is of step 1000000000"),
        ({"elapsed_s": math.nan}, "is damaged or of another model: its elapsed_s must be finite"),
        ({"elapsed_s": -0.5}, "is damaged or of another model: its elapsed_s must be finite"),
        ({"elapsed_s": math.inf}, "is damaged or of another model: its elapsed_s must be finite"),
        ({"x": 1}, "is damaged or of another model: its step must be a whole number from 0; it is None"),
    ],
)
def test_a_counter_that_cannot_be_is_refused(
    twice_saved: Path, tmp_path: Path, state: dict[str, float], message: str
) -> None:
    folder = shutil.copytree(twice_saved, tmp_path / "run")
    checkpoint = checkpoints(folder)[-1]
    torch.save(
        {"step": 2, "elapsed_s": 1.0, **state} if "x" not in state else state, checkpoint / "custom_checkpoint_1.pkl"
    )
    (checkpoint / CHECKSUMS_FILE).unlink()
    with pytest.raises(UserError, match=rf"step_00000002 {message}"):
        resumed(folder)


def test_a_counter_takes_what_it_gave_from_the_first_on() -> None:
    for state in (Counter().state_dict(), {"step": 3, "elapsed_s": 0.5}):
        counter = Counter()
        counter.load_state_dict(state)
        assert counter.state_dict() == state
