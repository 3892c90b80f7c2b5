"""Mutation testing: faults are what they say, the nearest tests judge them, and the tree stays as it is."""

from __future__ import annotations

import ast
import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = str(Path(__file__).parents[1] / "scripts")
sys.path.insert(0, SCRIPTS)

mutants, mutation_tests = importlib.import_module("mutants"), importlib.import_module("mutation_tests")

SOURCE = '''
"""Words 1 < 2."""

LIMIT = 3  # not 4


def bounded(x: int, low: int = 0, *, is_open: bool = True) -> int:
    """No more than 3."""
    if not is_open and x > LIMIT:
        raise ValueError(f"x must be at most {LIMIT + 1}; got {x}")
    print("seen", x + 1)
    found.append(x)
    for _ in range(9, 9):
        if x:
            break
    return max(low, x - 1)
'''
FAULTS = {
    ("constant", "3", "4"),
    ("constant", "3", "0"),
    ("default value", "0", "1"),
    ("default value", "0", "-1"),
    ("default value", "True", "False"),
    ("boolean", "not is_open and x > LIMIT", "not is_open or x > LIMIT"),
    ("not removed", "not is_open", "is_open"),
    ("comparison", "x > LIMIT", "x >= LIMIT"),
    ("comparison", "x > LIMIT", "x <= LIMIT"),
    ("statement removed", "found.append(x)", "pass"),
    ("constant", "9", "10"),
    ("constant", "9", "0"),
    ("condition negated", "x", "not x"),
    ("loop", "break", "continue"),
    ("opposite function", "max(low, x - 1)", "min(low, x - 1)"),
    ("arithmetic", "x - 1", "x + 1"),
    ("constant", "1", "2"),
    ("constant", "1", "0"),
}


def test_faults_are_what_they_say_and_leave_out_what_people_read() -> None:
    found = mutants.mutants_of("dar/bounded.py", SOURCE)
    (raised,) = (mutant for mutant in found if mutant.before.startswith("raise"))
    assert {(m.operator, m.before, m.after) for m in found if m is not raised} == FAULTS
    assert (raised.after, raised.line, raised.function) == ("pass", 10, "bounded")
    assert {m.function for m in found if m.before == "3"} == {"<module>"}
    assert len({mutant.name for mutant in found}) == len(found)
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = [
            (a, b) for a, b in zip(plain, mutants.mutated(SOURCE, mutant.place).splitlines(), strict=True) if a != b
        ]
        ((before, after),) = changed  # one line
        assert mutant.before.replace("'", "") in before.replace("'", "") and mutant.after in after


def test_a_sample_is_spread_by_lines_and_repeats() -> None:
    by_path = {f"{folder}/{i}.py": mutants.mutants_of(f"{folder}/{i}.py", SOURCE) for folder in "ab" for i in range(4)}
    lines = {path: 30 if path.startswith("a") else 10 for path in by_path}
    chosen = mutants.sampled(by_path, lines, 20, seed=3)
    assert sum(mutant.path.startswith("a") for mutant in chosen) == 15 and len(set(chosen)) == 20
    assert chosen == mutants.sampled(by_path, lines, 20, seed=3) != mutants.sampled(by_path, lines, 20, seed=4)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one module and its tests, which say nothing of what `low` is where it is not given, and call `most`
    only by their import."""
    files = {
        "dar/bounded.py": f"def bounded(x, low=0):  # {'long ' * 30}\n    return max(low, x - 1)\n"
        "\n\ndef most():\n    return 7\n\n\nMOST = most()\n",
        "tests/test_bounded.py": "from dar.bounded import MOST, bounded\n\n\n"
        "def test_it():\n    assert bounded(4) == 3 and MOST == 7\n",
        "tests/test_other.py": "def test_red():\n    raise ValueError\n",
        "pyproject.toml": "[tool.pytest.ini_options]\npythonpath = ['.']\n",
    }
    for name, text in files.items():
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_text(text)
    return tmp_path / "tree"


def test_a_run_lists_what_survives_and_leaves_the_tree_alone(tree: Path, tmp_path: Path) -> None:
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    before = {path: path.read_bytes() for path in tree.rglob("*.py")}
    code = f"import sys; sys.path.insert(0, {SCRIPTS!r}); import mutate; mutate.main(mutate.Path.cwd(), ())"
    command = [sys.executable, "-c", code, "--sample", "99", "--output", str(tmp_path / "out.md")]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert before == {path: path.read_bytes() for path in tree.rglob("*.py")}
    page = (tmp_path / "out.md").read_text()
    outcomes = {
        (record := json.loads(line))["name"].split(" | ")[-1]: record["outcome"]
        for line in (tmp_path / "out.jsonl").read_text().splitlines()
    }
    survivors = {name for name, outcome in outcomes.items() if outcome == "survived"}
    assert survivors == {"0 -> 1", "0 -> -1"}
    assert {"max(low, x - 1) -> min(low, x - 1)", "x - 1 -> x + 1"} < set(outcomes) - survivors
    assert "| all | 8 | 6 | 0 | 2 | 0 | 75 % |" in page and page.count("| dar/bounded.py:1 |") == 2


def test_what_never_ends_is_ended() -> None:
    def forever() -> None:
        while True:
            pass

    assert mutation_tests.in_fork(forever, cpu_s=1) == -signal.SIGXCPU
    assert mutation_tests.in_fork(lambda: time.sleep(60), cpu_s=0.05) is None
    assert mutation_tests.in_fork(lambda: sys.exit(3), cpu_s=1) == 3


def test_disks_of_tests_that_were_ended_are_taken_away(tmp_path: Path) -> None:
    inside, beside = tmp_path / "tree" / "disk", tmp_path / "other"
    for disk in (inside, beside):
        disk.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("nothing may be mounted here")
    try:
        importlib.import_module("mutate").unmount(tmp_path / "tree")
        assert not inside.is_mount() and beside.is_mount()
    finally:
        subprocess.run(["umount", "--lazy", str(beside)], check=True)
