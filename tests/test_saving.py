"""A checkpoint is written while the training goes on, one at a time, from what the state was when it was asked for."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from distill.errors import SAID_BY_MAIN, NonFiniteError, StoppedError, UserError
from distill.models.parameters import trainable_parameters
from distill.processes import Processes
from distill.training import saving
from distill.training.checkpoint import FOLDER, checkpoints, load_checkpoint
from distill.training.host_copy import HostCopy, free_host_memory
from distill.training.loop import run_loop
from distill.training.saving import Saver
from tests.test_resume import save_checkpoint, teacher_task
from tests.test_signals import interrupted


@pytest.fixture
def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """What the thread waits for before it writes."""
    may, write = threading.Event(), saving.write_state

    def waits(*args: object) -> None:
        assert may.wait(20)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(saving, "write_state", waits)
    return may


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, *_: object) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "write_state", write)


def folders(run: Path) -> list[str]:
    return sorted(path.name for path in (run / FOLDER).iterdir())


def test_updates_go_on_while_it_is_written_and_do_not_change_it(tmp_path: Path, held_back: threading.Event) -> None:
    task, accelerator, _ = teacher_task(tmp_path, 4)
    task.update(0)
    before = {name: value.clone() for name, value in task.learner.module.state_dict().items()}
    with Saver(accelerator, tmp_path, keep=1) as saver:
        saver.save(1)
        task.update(1)
        assert not checkpoints(tmp_path) and not saver.failed
        held_back.set()
        saver.wait()
        (folder,) = checkpoints(tmp_path)
    saved = load_file(folder / "model.safetensors")
    assert saved and all(torch.equal(value, before[name]) for name, value in saved.items())
    now = task.learner.module.state_dict()
    assert any(not torch.equal(value, now[name]) for name, value in saved.items())


def test_one_is_written_at_a_time(tmp_path: Path, held_back: threading.Event, caplog, monkeypatch) -> None:
    monkeypatch.setattr(saving, "SAID_S", 0.1)
    _, accelerator, _ = teacher_task(tmp_path, 4)
    with caplog.at_level("INFO", logger="distill"), Saver(accelerator, tmp_path, keep=2) as saver:
        saver.save(1)
        assert "is whole" not in caplog.text
        threading.Timer(0.3, held_back.set).start()
        saver.save(2)
        assert folders(tmp_path)[-1] == "step_00000001" or len(folders(tmp_path)) == 2
        assert "step_00000001 is whole" in caplog.text
    assert folders(tmp_path) == ["step_00000001", "step_00000002"]
    (said,) = re.findall(r"waited (\S+) s for the checkpoint of step 1", caplog.text)
    assert 0.2 <= float(said) < 5


def test_a_failed_one_leaves_the_last_alone(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    _, accelerator, _ = teacher_task(tmp_path, 4)
    save_checkpoint(accelerator, tmp_path, 1, keep=2)
    request.getfixturevalue("full_disk")
    with pytest.raises(UserError, match=r"step 2 .*No space left on device.*step_00000001 is intact"):
        save_checkpoint(accelerator, tmp_path, 2, keep=2)
    assert folders(tmp_path) == ["step_00000001"]


class OfTwo(Processes):
    """One of two processes, which do the same."""

    def apart(self) -> Processes:
        return self

    def from_main(self, make: Callable[[], Any]) -> Any:
        return make()

    def from_all(self, value: Any) -> list[Any]:
        return [value] * self.number


@pytest.mark.parametrize("index", [0, 1])
def test_of_several_processes_one_says_why_it_failed(
    tmp_path: Path, full_disk: None, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    _, accelerator, _ = teacher_task(tmp_path, 4)
    monkeypatch.setattr(Processes, "all", lambda: OfTwo(index, 2))
    with pytest.raises(UserError, match=r"step 1 could not be written: .*No space left on device") as raised:
        save_checkpoint(accelerator, tmp_path, 1, keep=1)
    assert (SAID_BY_MAIN in getattr(raised.value, "__notes__", [])) == (index == 1)


def test_a_failure_ends_the_training_an_update_after_it(tmp_path: Path, full_disk: None) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 100)
    update = task.update

    def with_time_to_fail(step: int) -> dict:
        time.sleep(0.3 if step == 2 else 0)
        assert step < 3
        return update(step)

    task.update = with_time_to_fail
    with pytest.raises(UserError, match=r"of step 2 could not be written: .*No space left.*there is no earlier one"):
        run_loop(task, loop, accelerator, tmp_path)
    assert folders(tmp_path) == []


def test_a_failure_of_the_last_one_is_raised_at_the_end(tmp_path: Path, full_disk: None) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 1)
    with pytest.raises(UserError, match="of step 1 could not be written"):
        run_loop(task, loop, accelerator, tmp_path)


def test_a_stop_waits_for_it(tmp_path: Path, held_back: threading.Event) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 4)
    interrupted(task, 1, 15)
    threading.Timer(0.3, held_back.set).start()
    with pytest.raises(StoppedError):
        run_loop(task, loop, accelerator, tmp_path)
    assert folders(tmp_path) == ["step_00000001"]


def test_a_stop_whose_checkpoint_cannot_be_written_says_so(tmp_path: Path, full_disk: None) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 4)
    interrupted(task, 1, 15)
    with pytest.raises(UserError, match="of step 1 could not be written"):
        run_loop(task, loop, accelerator, tmp_path)


def test_what_ends_the_training_waits_for_it_and_is_what_is_said(tmp_path: Path, full_disk: None, caplog) -> None:
    _, accelerator, _ = teacher_task(tmp_path, 4)
    with pytest.raises(NonFiniteError), Saver(accelerator, tmp_path, keep=1) as saver:
        saver.save(1)
        raise NonFiniteError("loss")
    assert "the checkpoint of step 1 could not be written" in caplog.text


def test_who_wants_the_end_at_once_gets_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But nothing half is left, and the file that is being written is the last."""
    _, accelerator, _ = teacher_task(tmp_path, 4)
    writes, done = threading.Event(), threading.Event()

    def write(folder: Path, *_: object) -> None:
        writes.set()
        time.sleep(0.3)
        (folder / "a").write_text("a")
        done.set()

    monkeypatch.setattr(saving, "write_state", write)
    with pytest.raises(KeyboardInterrupt), Saver(accelerator, tmp_path, keep=1) as saver:
        saver.save(1)
        assert writes.wait(20)
        raise KeyboardInterrupt
    assert done.is_set() and folders(tmp_path) == []


def test_without_memory_for_a_copy_the_training_waits(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(saving, "free_host_memory", lambda: 1000)
    monkeypatch.setattr(HostCopy, "of", None)
    _, accelerator, _ = teacher_task(tmp_path, 4)
    with caplog.at_level("INFO", logger="distill"), Saver(accelerator, tmp_path, keep=2) as saver:
        for step in (1, 2):
            saver.save(step)
            assert folders(tmp_path)[-1] == f"step_0000000{step}"
    assert caplog.text.count("the training waits for its checkpoints: a copy takes 0.0 GB") == 1


def test_a_copy_is_of_all_and_its_memory_is_used_again() -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": [whole, (whole[:, 1], "x")], 3: {"n": np.arange(2)}, "b": torch.tensor(True), "t": whole.T}
    copy = HostCopy()
    assert copy.more_bytes(state) == 12 * 4 + 3 * 4 + 1 + 12 * 4
    first = copy.of(state)
    places = [first["a"][0].data_ptr(), first["a"][1][0].data_ptr()]
    assert copy.more_bytes(state) == 0 and copy.more_bytes({**state, "c": whole}) == 48
    whole.add_(1)
    state[3]["n"] += 1
    assert torch.equal(first["a"][0], whole - 1) and first["a"][1][0].tolist() == [1, 5, 9]
    assert first[3]["n"].tolist() == [0, 1] and first["a"][1][1] == "x" and first["b"] and list(first) == list(state)
    assert first["t"].is_contiguous() and torch.equal(first["t"], whole.T - 1)
    assert first["a"][1][0].untyped_storage().nbytes() == 12
    again = copy.of(state)
    assert torch.equal(again["a"][0], whole)
    assert [again["a"][0].data_ptr(), again["a"][1][0].data_ptr()] == places
    assert copy.of({"a": [whole[:2]]})["a"][0].shape == (2, 4)


def test_free_memory_is_that_of_the_machine_or_of_its_control_group(tmp_path: Path, monkeypatch) -> None:
    everything = free_host_memory()
    assert 0 < everything < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    monkeypatch.setattr("distill.training.host_copy.CGROUPS", tmp_path)
    monkeypatch.setattr("distill.training.host_copy.own_group", lambda: "")
    assert free_host_memory() == pytest.approx(everything, rel=0.5)
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 700\ninactive_file 1000\n")  # the system can take it back
    assert free_host_memory() == 3000


def test_random_states_are_those_when_it_was_asked_for(tmp_path: Path, held_back: threading.Event) -> None:
    _, accelerator, _ = teacher_task(tmp_path, 4)

    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    with Saver(accelerator, tmp_path, keep=1) as saver:
        saver.save(1)
        expected = drawn()
        held_back.set()
    load_checkpoint(accelerator, tmp_path)
    assert drawn() == expected


def test_weights_are_checked_before_they_are_copied(tmp_path: Path) -> None:
    task, accelerator, _ = teacher_task(tmp_path, 4)
    with Saver(accelerator, tmp_path, keep=1) as saver:
        saver.save(1)
        with torch.no_grad():
            next(iter(trainable_parameters(task.learner.module).values())).fill_(float("nan"))
        with pytest.raises(NonFiniteError, match="after step 2"):
            saver.save(2)
    assert folders(tmp_path) == ["step_00000001"]
