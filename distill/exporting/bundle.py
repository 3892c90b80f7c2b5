"""One Python file out of definitions that lie in several modules of ours: what one of them needs, as it stands.

A folder that is loaded elsewhere brings its model's code along. That code is not written a second time: it is taken
from the sources of this package, definition by definition, beginning at the one that is asked for and going on to
every name that it uses. Of a class only those methods come along that something kept calls by name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("dar", "distill")
CALLED_BY_TORCH = ("forward",)  # by no name that stands in our code
Name = tuple[str, str]
"""A module and what it defines."""


@dataclass
class Module:
    """A module as it is written.

    definitions: by name, the statement and the last line of it and of the string behind it that describes it.
    imports: by the name that is used here, the module and the name there, which is "" where the module is meant.
    """

    name: str
    lines: list[str]
    definitions: dict[str, tuple[ast.stmt, int]] = field(default_factory=dict)
    imports: dict[str, Name] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)  # modules that are run first


def bundle(
    heading: str,
    entries: Sequence[Name],
    stand_ins: Mapping[Name, Name] | None = None,
    left_out: Sequence[str] = (),
) -> str:
    """The text of a file with `entries` and what they need, which imports nothing of ours.

    Args:
        heading: what the file says of itself.
        entries: what is asked for; also what registers itself, so that no name leads to it.
        stand_ins: definitions that take another's place.
        left_out: packages of others, such as "huggingface_hub", whose classes are no bases there.

    Raises: ValueError where two definitions have one name, or one imports something of ours while it runs.
    """
    needed = _Needed(stand_ins or {}, left_out)
    for name in entries:
        needed.add(name)
    needed.close()
    return needed.text(heading)


class _Needed:
    """Definitions, and the names of the methods that they call."""

    def __init__(self, stand_ins: Mapping[Name, Name], left_out: Sequence[str]) -> None:
        self._stand_ins, self._left_out = stand_ins, left_out
        self._names: dict[Name, None] = {}
        self._external: set[tuple[str, str, str]] = set()  # module, name there, name here
        self._attributes: set[str] = set(CALLED_BY_TORCH)

    def add(self, name: Name) -> None:
        found = self._home(name)
        self._names.setdefault(self._stand_ins.get(found, found))

    def close(self) -> None:
        """Add what is used by what is there, until nothing is added."""
        before = -1
        while before != (before := len(self._names) + len(self._attributes)):
            for module, name in list(self._names):
                statement, _ = read(module).definitions[name]
                for node in self._walk(module, statement):
                    if isinstance(node, ast.Attribute):
                        self._attributes.add(node.attr)
                    elif isinstance(node, ast.Name):
                        self._use(module, node.id)
                    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                        raise ValueError(f"{module}.{name} imports {node.module} while it runs")

    def text(self, heading: str) -> str:
        """Heading and imports, then module by module what it defines, each after those that it imports."""
        self._check_names()
        lines = [f'"""{heading}"""', "", "from __future__ import annotations", *self._imports()]
        for module in _in_order(module for module, _ in self._names):
            own = [name for name in read(module).definitions if (module, name) in self._names]
            if own:
                lines += ["", "", f"# From {module.replace('.', '/')}.py"]
            after_constant = False
            for name in own:
                is_constant = isinstance(read(module).definitions[name][0], (ast.Assign, ast.AnnAssign))
                lines += [] if after_constant and is_constant else ["", ""]
                lines += self._lines(module, name)
                after_constant = is_constant
        return "\n".join(lines) + "\n"

    def _home(self, name: Name) -> Name:
        """Where a name is defined, which may be imported and handed on by others."""
        module, of_it = name
        source = read(module)
        if of_it in source.definitions:
            return name
        return self._home(source.imports[of_it])

    def _use(self, module: str, name: str) -> None:
        source = read(module)
        if name in source.definitions:
            self.add((module, name))
        elif name in source.imports:
            there, of_it = source.imports[name]
            if there.split(".")[0] in PACKAGES:
                self.add((there, of_it))
            else:
                self._external.add((there, of_it, name))

    def _walk(self, module: str, statement: ast.stmt) -> Iterator[ast.AST]:
        if not isinstance(statement, ast.ClassDef):
            yield from ast.walk(statement)
            return
        for node in [*statement.decorator_list, *self._bases(module, statement), *self._keywords(module, statement)]:
            yield from ast.walk(node)
        for member in statement.body:
            if self._is_kept(member):
                yield from ast.walk(member)

    def _is_kept(self, member: ast.stmt) -> bool:
        if not isinstance(member, ast.FunctionDef):
            return True
        return member.name in self._attributes or (member.name.startswith("__") and member.name.endswith("__"))

    def _bases(self, module: str, statement: ast.ClassDef) -> list[ast.expr]:
        imports = read(module).imports
        return [
            base
            for base in statement.bases
            if not (isinstance(base, ast.Name) and imports.get(base.id, ("", ""))[0].split(".")[0] in self._left_out)
        ]

    def _keywords(self, module: str, statement: ast.ClassDef) -> list[ast.keyword]:
        """What a class tells its bases: nothing, where one of them is left out."""
        return statement.keywords if len(self._bases(module, statement)) == len(statement.bases) else []

    def _lines(self, module: str, name: str) -> Iterator[str]:
        source = read(module)
        statement, end = source.definitions[name]
        first = min([statement.lineno, *(node.lineno for node in getattr(statement, "decorator_list", []))])
        if not isinstance(statement, ast.ClassDef):
            yield from source.lines[first - 1 : end]
            return
        yield from source.lines[first - 1 : statement.lineno - 1]
        told = [*self._bases(module, statement), *self._keywords(module, statement)]
        yield f"class {name}({', '.join(map(ast.unparse, told))}):" if told else f"class {name}:"
        last = statement.body[0].lineno - 1
        if isinstance(statement.body[0], ast.FunctionDef):
            last = min([last, *(node.lineno - 1 for node in statement.body[0].decorator_list)])
        for member in statement.body:
            if self._is_kept(member):
                yield from source.lines[last : member.end_lineno]
            last = member.end_lineno or last

    def _imports(self) -> list[str]:
        """The standard library's, then others', each `import` before `from`."""
        statements: dict[str, str] = {}  # and the module that each is of
        for module, name, here in sorted(self._external):
            if not name:
                statements[f"import {module}" + (f" as {here}" if here != module else "")] = module
        for module in sorted({module for module, name, _ in self._external if name}):
            names = sorted(
                name if name == here else f"{name} as {here}"
                for m, name, here in self._external
                if m == module and name
            )
            statements[f"from {module} import {', '.join(names)}"] = module
        groups = [
            [
                line
                for line, module in statements.items()
                if (module.split(".")[0] in sys.stdlib_module_names) == standard
            ]
            for standard in (True, False)
        ]
        return [line for group in groups if group for line in ["", *group]]

    def _check_names(self) -> None:
        names = [name for _, name in self._names] + [here for _, _, here in self._external]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several definitions have the name {', '.join(twice)}")


@cache
def read(module: str) -> Module:
    """A module's source. It is parsed, not run."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, module
    text = Path(spec.origin).read_text(encoding="utf-8")
    source = Module(module, text.splitlines())
    body = ast.parse(text).body
    for statement, following in zip(body, [*body[1:], None], strict=True):
        for name in _defined(statement):
            describes = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            end = following.end_lineno if describes and following else statement.end_lineno
            source.definitions[name] = (statement, end or statement.lineno)
        _take_imports(source, statement)
    return source


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _take_imports(source: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.If):  # TYPE_CHECKING: names of annotations, not run
        for inner in statement.body:
            _take_imports(Module(source.name, [], {}, source.imports), inner)
    elif isinstance(statement, ast.Import):
        source.imports |= {alias.asname or alias.name: (alias.name, "") for alias in statement.names}
    elif isinstance(statement, ast.ImportFrom) and statement.module:
        source.imports |= {alias.asname or alias.name: (statement.module, alias.name) for alias in statement.names}
        source.before.append(statement.module)


def _in_order(modules: Iterator[str]) -> list[str]:
    """Modules, each behind all that it imports."""
    found: dict[str, None] = {}
    on_the_way: set[str] = set()

    def visit(module: str) -> None:
        if module in on_the_way or module.split(".")[0] not in PACKAGES:
            return
        on_the_way.add(module)
        for other in read(module).before:
            visit(other)
        found.setdefault(module)

    for module in modules:
        visit(module)
    return list(found)
