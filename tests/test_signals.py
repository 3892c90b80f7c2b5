"""A signal ends a training after its update, with a checkpoint; all processes of one together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed

from distill.cli import main
from distill.errors import StoppedError
from distill.training.checkpoint import checkpoints
from distill.training.loop import run_loop
from distill.training.run_log import read_log
from distill.training.signals import SIGNALS, Stop
from tests.conftest import without_time
from tests.test_cli import train_config, write_idx
from tests.test_processes import ON_CPU, ROOT, TORCHRUN
from tests.test_resume import state_of, teacher_task

LONG = ["train.steps=100000", "train.save_every=100000", "train.grid_every=100000"]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """As in a terminal: what a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(task, step: int, number: int, times: int = 1) -> None:
    """Let `task` get a signal within its update number `step` (from 1)."""
    update = task.update

    def with_signal(now: int) -> dict:
        for _ in range(times if now + 1 == step else 0):
            signal.raise_signal(number)
        return update(now)

    task.update = with_signal


@pytest.mark.parametrize("number", SIGNALS)
def test_the_update_ends_and_is_saved_and_the_rest_is_the_same(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    folders = tmp_path / "whole", tmp_path / "parts"
    states = []
    for folder in folders:
        folder.mkdir()
        task, accelerator, loop = teacher_task(folder, 4)
        if folder is folders[1]:
            interrupted(task, 3, number)
            with pytest.raises(StoppedError, match=rf"stopped by {signal.Signals(number).name} after update 3"):
                run_loop(task, loop, accelerator, folder)
            assert checkpoints(folder)[-1].name == "step_00000003"
            task, accelerator, loop = teacher_task(folder, 4)
            run_loop(task, loop, accelerator, folder, resume=True)
        else:
            run_loop(task, loop, accelerator, folder)
        states.append(state_of(task.learner.module, task.ema.module))
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert without_time(folders[0]) == without_time(folders[1])
    assert signal.getsignal(number) == before


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 4)
    interrupted(task, 1, signal.SIGINT, times=2)
    with pytest.raises(KeyboardInterrupt):
        run_loop(task, loop, accelerator, tmp_path)
    assert not checkpoints(tmp_path)


def test_what_the_launcher_hands_on_is_no_second_request(monkeypatch) -> None:
    """The terminal tells each process of Ctrl-C, and then torchrun does so again."""
    times = iter([1000.0, 1000.9, 1001.1])
    monkeypatch.setattr("distill.training.signals.time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    ends: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: ends.append(number))
    try:
        with Stop(num_processes=1) as stop:
            for _ in range(2):
                signal.raise_signal(signal.SIGUSR1)
            assert stop.agreed() and not ends
            signal.raise_signal(signal.SIGUSR1)
            assert ends == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_after_the_last_update_is_not_forgotten(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 2)
    interrupted(task, 2, signal.SIGTERM)
    with pytest.raises(StoppedError, match="after update 2"):
        run_loop(task, loop, accelerator, tmp_path)
    assert checkpoints(tmp_path)[-1].name == "step_00000002"


def test_what_one_process_is_asked_all_are_told_an_update_later(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with Stop(num_processes=2) as stop:
            told = [stop.agreed() for _ in range(3)]
            signal.raise_signal(signal.SIGTERM)
            told += [stop.agreed() for _ in range(2)]
    finally:
        torch.distributed.destroy_process_group()
    assert told == [False, False, False, False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_no_process_leaves_while_another_waits_for_its_word(monkeypatch, fails: bool) -> None:
    """The last word is waited for at the end; where this process fails the others may never give theirs."""
    begun: list[int] = []
    waited: list[int] = []

    def all_reduce(*_: object, **__: object) -> SimpleNamespace:
        begun.append(number := len(begun))
        return SimpleNamespace(wait=lambda: waited.append(number))

    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    with suppress(ArithmeticError), Stop(num_processes=2) as stop:
        for _ in range(3):
            stop.agreed()
        if fails:
            raise ArithmeticError
    assert waited == ([0, 1] if fails else [0, 1, 2])


def test_before_the_first_update_there_is_nothing_to_wait_for(tmp_path: Path, capsys, monkeypatch) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "data"))

    def stopped(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr("distill.verbs.train.check_samples", stopped)
    assert main(["train", config]) == 75
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped by SIGUSR1; go on with: dar-distill train ")


def started(*command: str) -> subprocess.Popen[str]:
    """A command in a group of processes of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, **ON_CPU},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_command_says_how_to_go_on(tmp_path: Path) -> None:
    config = train_config(tmp_path, write_idx(tmp_path / "my data"))
    process = started("distill", "train", config, *LONG)
    wait_for(lambda: read_log(tmp_path / "teacher_run"))
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    (checkpoint,) = checkpoints(tmp_path / "teacher_run")
    assert said.splitlines()[-1] == (
        f"stopped by SIGTERM after update {int(checkpoint.name[5:])}, of which there is a checkpoint; go on with: "
        f"dar-distill train {config} {' '.join(LONG)} --resume"
    )


@pytest.mark.parametrize("whom", [pytest.param("all", marks=pytest.mark.slow), "one", "killed"])
def test_processes_stop_together(tmp_path: Path, whom: str) -> None:
    """SIGTERM to the launcher, which hands it on; to one process alone; and SIGKILL to one."""
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    process = started(*TORCHRUN, "-m", "distill", "train", config, *LONG)
    folder = tmp_path / "teacher_run"
    wait_for(lambda: read_log(folder))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    last = int(children.read_text().split()[-1])
    began = time.monotonic()
    os.kill(process.pid if whom == "all" else last, signal.SIGKILL if whom == "killed" else signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert time.monotonic() - began < 60 and process.returncode != 0
    ours = [line for line in said.splitlines() if "dar-distill" in line and "Root Cause" not in line]
    if whom == "killed":
        assert not checkpoints(folder)
        assert [line for line in ours if "another process of this run has ended" in line], said
        assert said.count("Traceback") == 1, said  # torchrun's own
    else:
        assert len(checkpoints(folder)) == 1, said
        assert [line for line in ours if "go on with: dar-distill train" in line], said
