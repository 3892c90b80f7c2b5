"""Folders have one writer, and nothing is removed that was not made here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from dar.checksums import CHECKSUMS_FILE
from distill.cli import main
from distill.config import TrainConfig, load_config
from distill.errors import UserError
from distill.files import claimed, locked, new_folder, replace_folder, write_bytes, write_folder
from distill.files.folders import LOCK_FILE
from distill.objectives import RunConfig
from distill.training.checkpoint import checkpoints
from distill.training.loop import run_loop
from distill.training.run_folder import claim_folder, opened_run
from distill.training.run_log import read_log
from tests.test_cli import train_config, write_idx
from tests.test_resume import teacher_task

HOLDER = """
import sys
from pathlib import Path
from distill.files import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory):
    """A folder that another process writes into, and that process."""
    folder = tmp_path_factory.mktemp("held") / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        yield folder, process
        process.kill()
        process.wait()
        with locked(folder):  # what it left says nothing
            assert (folder / LOCK_FILE).is_file()
        assert not list(folder.iterdir())


def test_a_folder_has_one_writer_until_it_ends(held: tuple[Path, subprocess.Popen]) -> None:
    folder, process = held
    with pytest.raises(UserError, match=rf"run is being written by process {process.pid} on .* since 20.*stop it"):
        locked(folder).__enter__()


def test_verbs_refuse_a_folder_that_another_process_writes(
    tmp_path: Path, held: tuple[Path, subprocess.Popen], capsys
) -> None:
    run = str(held[0])
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    for argv in (
        ["train", config, f"output={run}"],
        ["train", config, f"output={run}", "--resume"],
        ["evaluate", "embedded", "--output", run, "--num-images", "20"],
        ["compare", "embedded", "--output", run],
    ):
        assert main(argv) == 2
        assert "is being written by process" in capsys.readouterr().err.splitlines()[-1]


def test_a_process_that_writes_many_folders_keeps_none_of_them_open(tmp_path: Path) -> None:
    def held_open() -> int:
        return sum(file.resolve().is_relative_to(tmp_path.resolve()) for file in Path("/proc/self/fd").iterdir())

    for _ in range(3):
        with locked(tmp_path / "out") as folder:
            with pytest.raises(UserError):
                locked(folder).__enter__()
            assert held_open() == 1
        assert held_open() == 0


def test_a_claim_within_a_process_is_one_too(tmp_path: Path) -> None:
    with claimed(tmp_path / "out") as folder, pytest.raises(UserError, match="is being written by process"):
        claimed(folder).__enter__()
    with claimed(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("who", "message"),
    [
        ({}, "is being written by process"),
        (
            {"host": "elsewhere"},
            r"elsewhere since .*, another machine.*; if it has ended, remove .*\.lock",
        ),
        ({"pid": 2**22 + 1}, None),
        ({"boot": "another"}, None),
    ],
)
def test_where_there_are_no_locks_the_file_says_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held: tuple[Path, subprocess.Popen],
    who: dict,
    message: str | None,
) -> None:
    """The one that wrote it is alive; on another machine; has ended; ended with the machine's last start."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    path = tmp_path / "run" / LOCK_FILE
    path.parent.mkdir()
    path.write_text(json.dumps({**json.loads((held[0] / LOCK_FILE).read_text()), **who}))
    if message is None:
        with locked(tmp_path / "run"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    else:
        with pytest.raises(UserError, match=message):
            locked(tmp_path / "run").__enter__()


def test_only_what_is_new_is_written(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for path in ("mine", "link", "mine/new/..", "mine/thesis.txt"):
        with pytest.raises(UserError, match="is not empty"):
            new_folder(tmp_path / path)
    with pytest.raises(UserError, match="is not empty: another call wrote into it meanwhile"):
        write_folder(tmp_path / "mine", lambda folder: (folder / "a").write_text("a"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_names_that_others_might_have_are_not_taken(tmp_path: Path) -> None:
    """Earlier versions wrote under .NAME.partial, and removed what was called so."""
    theirs = tmp_path / ".student.partial"
    theirs.mkdir()
    (theirs / "notes").write_text("mine")
    write_folder(tmp_path / "student", lambda folder: (folder / "a").write_text("a"))
    (tmp_path / "student").rename(tmp_path / "a_student")
    replace_folder(tmp_path / "student", lambda folder: (folder / "b.safetensors").write_text("b"))
    left = sorted(path.name for path in (tmp_path / "student").iterdir())
    assert left == ["b.safetensors", CHECKSUMS_FILE]
    (tmp_path / ".a.partial").write_text("mine")
    write_bytes(tmp_path / "a", b"a")
    assert (theirs / "notes").read_text() == (tmp_path / ".a.partial").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".a.partial",
        ".student.partial",
        "a",
        "a_student",
        "student",
    ]


def test_what_others_put_into_a_folder_stays_when_it_is_made_anew(tmp_path: Path, caplog) -> None:
    student = tmp_path / "student"

    def made(*names: str) -> list[str]:
        replace_folder(student, lambda folder: [(folder / name).write_text(f"of {names}") for name in names])
        return sorted(path.relative_to(student).as_posix() for path in student.rglob("*") if path.is_file())

    assert made("a.safetensors", "b", "README.md") == ["README.md", "a.safetensors", "b", CHECKSUMS_FILE]
    for name in ("notes.txt", "pictures/1.png"):
        (student / name).parent.mkdir(exist_ok=True)
        (student / name).write_text("mine")
    left = made("a.safetensors", "README.md", "c")  # b was ours, and is of the one before
    assert left == ["README.md", "a.safetensors", "c", CHECKSUMS_FILE, "notes.txt", "pictures/1.png"]
    assert (student / "notes.txt").read_text() == (student / "pictures" / "1.png").read_text() == "mine"
    assert made("a.safetensors") == ["a.safetensors", CHECKSUMS_FILE, "notes.txt", "pictures/1.png"]
    (student / CHECKSUMS_FILE).unlink()  # now nobody knows
    with caplog.at_level("INFO", logger="distill"):
        assert made("d.safetensors") == [CHECKSUMS_FILE, "d.safetensors"]
    (kept,) = tmp_path.glob("student.before-*")
    assert (kept / "notes.txt").is_file() and (kept / "a.safetensors").is_file() and kept.name in caplog.text
    (student / "e").write_text("mine")
    assert made("d.safetensors", "e") == [CHECKSUMS_FILE, "d.safetensors", "e"]
    (kept,) = set(tmp_path.glob("student.before-*")) - {kept}
    assert (kept / "e").read_text() == "mine"


def test_a_folder_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    replace_folder(tmp_path / "student", lambda folder: (folder / "a").write_text("a"))

    def fill(folder: Path) -> None:
        (folder / "b").write_text("b")
        raise OSError(28, "No space left on device")

    for write in (replace_folder, write_folder):
        with pytest.raises(UserError, match="student could not be written: No space left"):
            write(tmp_path / "student", fill)
    assert [path.name for path in tmp_path.iterdir()] == ["student"] and (tmp_path / "student" / "a").is_file()


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    descriptors: set[int] = set()

    def fsync(descriptor: int) -> None:
        descriptors.add(descriptor)
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda path, to: done.append(f"{path.name} is {to.name}"))
    write_folder(tmp_path / "out", lambda folder: (folder / "a.safetensors").write_text("a"))
    named = next(i for i, what in enumerate(done) if what.endswith(" is out"))
    assert {"a.safetensors", CHECKSUMS_FILE} <= set(done[:named]) and done[named + 1 :] == [tmp_path.name]
    assert any(what.startswith(".out-") for what in done[:named])
    done.clear()
    write_bytes(tmp_path / "out" / "b", b"b")
    assert [what.split("-")[0] for what in done] == [".b", "out"]
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_training_does_not_write_into_what_a_path_leads_to(tmp_path: Path, capsys) -> None:
    """`X/new/..` is X, whatever is in it."""
    theirs = tmp_path / "theirs"
    kept = theirs / "checkpoints" / "step_00000001" / "a"
    kept.parent.mkdir(parents=True)
    kept.write_text("a")
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    assert main(["train", config, f"output={theirs}/new/..", "train.keep=1"]) == 2
    assert "is not empty" in capsys.readouterr().err.splitlines()[-1]
    assert kept.read_text() == "a" and sorted(path.name for path in theirs.iterdir()) == ["checkpoints"]


def begun(folder: Path, config: RunConfig) -> None:
    """What a run leaves that is killed before its first checkpoint."""
    claim_folder(folder, config, resume=False)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "checkpoints" / ".step_00000002-0123456789ab.partial").mkdir(parents=True)
    (folder / LOCK_FILE).touch()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, run_config: RunConfig, accelerator: Accelerator, resume: bool
) -> None:
    folder = tmp_path / "run"
    begun(folder, run_config)
    with opened_run(run_config, accelerator, resume=resume) as run:
        assert not run.resumes
    other = replace(run_config, student=replace(run_config.student, steps=8))
    message = "configuration differs" if resume else "is not empty"
    with pytest.raises(UserError, match=message), opened_run(other, accelerator, resume=resume):
        pass


def test_so_does_one_that_had_only_claimed_its_folder(tmp_path: Path, run_config, accelerator: Accelerator) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).touch()
    for resume in (False, True):
        with opened_run(run_config, accelerator, resume=resume) as run:
            assert not run.resumes


def test_a_configuration_that_someone_wrote_is_not_a_run(tmp_path: Path, run_config, accelerator: Accelerator) -> None:
    folder = tmp_path / "run"
    begun(folder, run_config)
    text = "# mine\n" + (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="is not empty"), opened_run(run_config, accelerator, resume=False):
        pass
    assert (folder / "config.yaml").read_text() == text


def test_what_a_killed_save_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    task, accelerator, loop = teacher_task(tmp_path, 2)
    for name in (".step_00000001-0123456789ab.partial", ".step_00000001.partial", "mine", ".mine.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    run_loop(task, loop, accelerator, tmp_path)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == [".mine.partial", "mine", "step_00000002"]


def test_a_launcher_starts_a_killed_training_with_the_same_command(tmp_path: Path) -> None:
    """SIGKILL at the first line of the log; the folder then is as a machine that went away leaves it."""
    config = train_config(tmp_path, write_idx(tmp_path / "data"))
    settings = ["train.steps=100000", "train.save_every=100000", "train.grid_every=100000"]
    folder = tmp_path / "teacher_run"
    command = [sys.executable, "-m", "distill", "train", config, *settings]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not read_log(folder) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert read_log(folder) and not checkpoints(folder) and (folder / LOCK_FILE).is_file()
    with opened_run(load_config(TrainConfig, config, settings), Accelerator(cpu=True), resume=False) as run:
        assert not run.resumes
