"""The order of the rooms: imports go one way, and the command line answers before torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import distill
from distill.cli import main

ROOT = Path(__file__).parents[1]
# Each may import those below it, and none beside or above.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("verbs",),
    ("planning", "comparison", "exporting"),
    ("evaluation",),
    ("report",),
    ("diagnosis",),
    ("objectives",),
    ("training",),
    ("conformance",),
    ("data", "sampling"),
    ("models", "latents", "metrics"),
    ("conditions", "config"),
    ("allocator", "assets", "processes", "progress", "render", "files", "seeds"),
    ("errors",),
)
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}
MAX_LINES = 400


def room(path: Path) -> str:
    """The part of `distill` that a file belongs to."""
    return path.relative_to(ROOT / "distill").parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """The parts of `distill` that a module imports, at once or within a function."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "distill":
            found += node.module.split(".")[1:2] or [alias.name for alias in node.names]
    return found


def test_imports_go_one_way() -> None:
    for path in (ROOT / "distill").rglob("*.py"):
        if (here := room(path)) != "__init__":
            for there in imports(ast.parse(path.read_text())):
                assert there == here or LEVEL[there] < LEVEL[here], f"{path}: {here} must not import {there}"


def imported_files(path: Path) -> set[Path]:
    """The files of `dar` and `distill` that a file imports, at once or within a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("dar", "distill"):
            place = ROOT / node.module.replace(".", "/")
            names = [place / alias.name for alias in node.names]
            files = [file for name in names for file in (name.with_suffix(".py"), name / "__init__.py")]
            # Names that are no modules are those of the module itself.
            files = [*filter(Path.is_file, files)] or [place.with_suffix(".py"), place / "__init__.py"]
            found |= {file for file in files if file.is_file()}
    return found


@pytest.mark.parametrize("package", ["dar", "distill"])
def test_no_imports_run_in_a_circle(package: str) -> None:
    graph = {path: imported_files(path) for path in (ROOT / package).rglob("*.py")}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()  # which raises CycleError


def test_dar_imports_nothing_of_distill() -> None:
    for path in (ROOT / "dar").rglob("*.py"):
        assert not imports(ast.parse(path.read_text())), path


def test_few_modules_at_the_top_and_each_package_says_what_it_is() -> None:
    assert len(list((ROOT / "distill").glob("*.py"))) <= 8
    for path in (ROOT / "distill").glob("*/__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert "May import" in text, f"{path} says nothing of what it may import"


@pytest.mark.parametrize("folder", ["dar", "distill", "scripts"])
def test_no_file_is_long(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= MAX_LINES, path


def test_the_command_line_answers_without_torch() -> None:
    code = (
        "import sys\nfrom distill.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "main(['recipes'])\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dar-distill {version('dar-distill')}\n"


def test_public_names_are_there_and_listed() -> None:
    listed = (ROOT / "docs" / "python.md").read_text()
    for name in distill.__all__:
        assert getattr(distill, name) is not None
        assert f"`{name}`" in listed, f"docs/python.md does not list {name}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = distill.nothing
