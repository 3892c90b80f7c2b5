"""A soak's verdicts: on made-up curves and lines, of which one thing at a time is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "soak", module)
    spec.loader.exec_module(module)
    return module


def part(soak: ModuleType, name: str, first: int, last: int, *, code: int = 0) -> Any:
    """An update a second; memory grows for a fifth of the time. Now and then a checkpoint is being written, and a line
    waits for a look."""
    made = soak.Part(name, code, code)
    for i in range(last - first):
        warm, writing = min(1.0, (1 + i) / (last - first) / 0.2), i % 25 == 0
        made.samples.append(
            soak.Sample(
                at=float(i),
                memory=int(1e9 * warm),
                open_files=8 + writing,
                threads=2,
                files=40 + 12 * writing,
                bytes=int(2e8),
                checkpoints=soak.KEEP + writing,
            )
        )
    steps = range(first + 1, last + 1)
    made.lines = [
        soak.Line(
            step - first + 30.0 * (step % soak.EVERY == 0),
            step,
            2600,
            float(step),
            2600.0 - step if step > first + 1 else None,
        )
        for step in steps
        if step % soak.LOG_EVERY == 0
    ]
    return made


@pytest.fixture
def parts(soak: ModuleType) -> list[Any]:
    return [
        part(soak, "first updates", 0, 50),
        part(soak, "to the stop", 50, 1300, code=soak.STOPPED),
        part(soak, "resumed", 1300, 2600),
    ]


def broken(soak: ModuleType, parts: list[Any]) -> list[str]:
    return [verdict.promise for verdict in soak.judge(parts) if not verdict.kept]


def test_a_run_that_keeps_its_word(soak: ModuleType, parts: list[Any]) -> None:
    assert broken(soak, parts) == []
    assert len(soak.judge(parts)) == 3 + 1 + 2 * 6 + 5


@pytest.mark.parametrize(
    ("name", "last", "promise"),
    [
        ("memory", lambda value, i: int(value * (1 + 4e-5 * i)), "memory, MiB flat to 1%"),
        ("bytes", lambda value, i: value + 10_000 * i, "folder, MiB flat to 1%"),
        ("open_files", lambda value, i: value + i // 300, "no more open files"),
        ("threads", lambda value, i: value + (i > 600), "no more threads"),
        ("files", lambda value, i: value + i // 25, "no more files in the folder"),
        ("checkpoints", lambda value, i: value + (i == 500), "at most 3 + 1 checkpoints"),
    ],
)
def test_what_grows_is_seen(soak: ModuleType, parts: list[Any], name: str, last: Any, promise: str) -> None:
    resumed = parts[-1]
    resumed.samples = [replace(s, **{name: last(getattr(s, name), i)}) for i, s in enumerate(resumed.samples)]
    assert broken(soak, parts) == [f"resumed: {promise}"]


def test_growth_within_a_percent_and_a_part_that_is_short_are_not(soak: ModuleType, parts: list[Any]) -> None:
    for one in parts:
        one.samples = [replace(s, memory=int(s.memory * (1 + 1e-5 * i))) for i, s in enumerate(one.samples)]
    parts[0].samples = [replace(s, memory=1000 * i) for i, s in enumerate(parts[0].samples)]
    assert broken(soak, parts) == []
    assert broken(soak, [parts[0]])[0] == "a part of 1000 updates at least, to have curves"


def test_a_crash_is_seen(soak: ModuleType, parts: list[Any]) -> None:
    parts[1].code = 1
    parts[2].lines = []
    assert broken(soak, parts) == ["to the stop: exit code 75", "every part tells its progress"]


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (lambda line: replace(line, left=line.left + 5), "with nothing left"),
        (lambda line: replace(line, steps=line.steps + 1), "the last line is of the last update"),
        (lambda line: replace(line, elapsed=line.elapsed - 1300), "and goes on where a run is resumed"),
        (lambda line: replace(line, left=2 * line.left), "halfway the time left is right to 50%"),
        (lambda line: replace(line, at=1.1 * line.at), "elapsed time is the clock's"),
    ],
)
def test_a_wrong_line_is_seen(soak: ModuleType, parts: list[Any], change: Any, promise: str) -> None:
    parts[-1].lines = [change(line) for line in parts[-1].lines]
    assert broken(soak, parts) == [promise]


def test_lines_are_read_as_the_loop_writes_them(soak: ModuleType) -> None:
    assert soak.parsed_line("step 10/150  critic 0.1  12 s, 168 s left", 3.0) == soak.Line(3, 10, 150, 12, 168)
    assert soak.parsed_line("step 1/150  critic 0.1  12 s", 3.0) == soak.Line(3, 1, 150, 12, None)
    assert soak.parsed_line("watch: update 10: lag: 2 s left", 3.0) is None


def test_the_folder_of_a_run(soak: ModuleType, tmp_path: Path) -> None:
    steps = 60
    logged = [step for step in range(1, steps + 1) if step == 1 or step % soak.LOG_EVERY == 0]
    (tmp_path / "grids").mkdir()
    for step in (25, 50, 60):
        (tmp_path / "grids" / f"step_{step:08d}.png").touch()
        (tmp_path / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in logged))
    assert all(verdict.kept for verdict in soak.judge_folder(tmp_path, steps))

    (tmp_path / "grids" / "step_00000030.png").touch()
    (tmp_path / "checkpoints" / "step_00000010").mkdir()
    (tmp_path / "checkpoints" / ".step_00000020-0123456789ab.partial").mkdir()
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in [*logged, steps]))
    assert not any(verdict.kept for verdict in soak.judge_folder(tmp_path, steps))


def test_the_record(soak: ModuleType, parts: list[Any]) -> None:
    parts[-1].code = 1
    page = soak.record(parts, soak.judge(parts), "soak.png")
    assert "| resumed, 4 |" in page and "953.6743" in page
    assert "| resumed: exit code 0 | 1 | **broken** |" in page and "Verdict: 1 broken." in page
    assert soak.curve(parts).startswith(b"\x89PNG")


def test_updates_are_planned_by_the_rate(soak: ModuleType, parts: list[Any]) -> None:
    parts[0].lines = [
        soak.Line(at=70.0 + 4 * step, step=step, steps=50, elapsed=step, left=None) for step in (1, 25, 50)
    ]
    assert soak.planned(parts[0], 100) == 50 + 25


def test_memory_is_without_that_of_files(soak: ModuleType) -> None:
    for info, own in ((SimpleNamespace(rss=10, shared=4), 6), (SimpleNamespace(rss=10), 10)):
        assert soak.own_memory(SimpleNamespace(memory_info=lambda info=info: info)) == own
