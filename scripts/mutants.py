"""What a mutant is: one small fault in a source file, of the kinds that people make.

Nothing is changed that only people see or wait for: messages, docstrings, types, texts, arguments of speed.
"""

from __future__ import annotations

import ast
import copy
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES = {"min": "max", "amin": "amax", "minimum": "maximum", "any": "all", "floor": "ceil", "sin": "cos"}
OPPOSITES |= {b: a for a, b in OPPOSITES.items()}

LEFT_OUT_FIELDS = {"annotation", "returns", "decorator_list", "bases", "format_spec"}
LEFT_OUT_NODES = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Assert)
FOR_PEOPLE = {"print", "warn", "warning", "info", "debug", "log", "TypeVar", "cast", "UserError", "track"}
TEXTS = {"__repr__", "__str__", "extra_repr", "__all__"}
OF_SPEED = {"non_blocking", "pin_memory", "persistent_workers", "maxsize", "indent", "stacklevel"}
MODULE = "<module>"


@dataclass(frozen=True)
class Mutant:
    """One fault.

    path: of the file, from the root of the repository.
    function: the outermost function or method that holds it; `<module>` for what runs when the file is imported.
    code: the line as it stands; before, after: the expression or statement that is changed.
    place: its number among all mutants of the file. occurrence: from 1, among those of this function that read alike.
    """

    path: str
    line: int
    function: str
    operator: str
    code: str
    before: str
    after: str
    place: int
    occurrence: int

    @property
    def name(self) -> str:
        """What stays the same where other lines are added or removed."""
        number = f" ({self.occurrence})" if self.occurrence > 1 else ""
        return f"{self.path} {self.function} | {self.code} | {self.before} -> {self.after}{number}"


@dataclass(frozen=True)
class Edit:
    """The fault in a syntax tree: parent's field (at index where it is a list) holds `old`, to be `new`."""

    operator: str
    function: str
    parent: ast.AST
    field: str
    index: int | None
    old: ast.AST
    new: ast.AST

    def apply(self) -> None:
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new


def mutants_of(path: str, source: str) -> list[Mutant]:
    """All mutants of a file."""
    lines = source.splitlines()
    alike: Counter[tuple[str, ...]] = Counter()
    found = []
    for place, edit in enumerate(_edits(ast.parse(source), MODULE, ())):
        line: int = edit.old.lineno  # pyright: ignore[reportAttributeAccessIssue]
        before, after = (" ".join(ast.unparse(node).split()) for node in (edit.old, edit.new))
        shown = edit.function, lines[line - 1].strip(), before, after
        alike[shown] += 1
        found.append(Mutant(path, line, edit.function, edit.operator, *shown[1:], place, alike[shown]))
    return found


def mutated(source: str, place: int) -> str:
    """The file with that fault. Comments and layout are lost."""
    tree = ast.parse(source)
    for number, edit in enumerate(_edits(tree, MODULE, ())):
        if number == place:
            edit.apply()
            return ast.unparse(ast.fix_missing_locations(tree))
    raise ValueError(f"there is no mutant {place}")


def sampled(by_path: Mapping[str, Sequence[Mutant]], lines: Mapping[str, int], number: int, seed: int) -> list[Mutant]:
    """About `number` mutants, of each folder in proportion to its lines, in random order."""
    draw = random.Random(seed)
    found = []
    for folder in sorted({folder_of(path) for path in by_path}):
        inside = [path for path in sorted(by_path) if folder_of(path) == folder]
        share = sum(lines[path] for path in inside) / sum(lines.values())
        candidates = [mutant for path in inside for mutant in by_path[path]]
        found += draw.sample(candidates, min(round(share * number), len(candidates)))
    draw.shuffle(found)
    return found


def folder_of(path: str) -> str:
    return str(Path(path).parent)


def _edits(node: ast.AST, function: str, around: tuple[str, ...]) -> Iterator[Edit]:
    """Edits below `node`; around: the names of the classes and functions that it stands in."""
    for field, value in ast.iter_fields(node):
        if field in LEFT_OUT_FIELDS:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _left_out(child, function):
                continue
            for operator, new in _alternatives(node, field, child):
                yield Edit(operator, function, node, field, index, child, new)
            if isinstance(child, ast.Raise):
                continue
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names = (*around, child.name)
                inside = function if isinstance(child, ast.ClassDef) or function != MODULE else ".".join(names)
                yield from _edits(child, inside, names)
            else:
                yield from _edits(child, function, around)


def _left_out(node: ast.AST, function: str) -> bool:
    match node:
        case ast.Expr(value=ast.Constant()):
            return True  # a docstring
        case ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]) if name in TEXTS:
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Compare(left=ast.Name(id="__name__"))):
            return True
        case ast.Expr(value=ast.Call() as call) | (ast.Call() as call) if _called(call) in FOR_PEOPLE:
            return True
        case ast.keyword(arg=name) if name in OF_SPEED:
            return True
        case ast.BinOp(left=left, right=right) if any(_is_text(side) for side in (left, right)):
            return True
        case ast.IfExp(body=body, orelse=orelse) if any(_is_text(part) for part in (body, orelse)):
            return True
        case ast.BinOp(op=ast.BitOr()) if function == MODULE:
            return True  # a union of types
    return isinstance(node, LEFT_OUT_NODES)


def _alternatives(parent: ast.AST, field: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare():
            for index, op in enumerate(node.ops):
                for other in COMPARISONS[type(op)]:
                    yield "comparison", _changed(node, ops=[*node.ops[:index], other(), *node.ops[index + 1 :]])
        case ast.BinOp(op=op) if type(op) in ARITHMETIC:
            yield "arithmetic", _changed(node, op=ARITHMETIC[type(op)]())
        case ast.AugAssign(op=op):
            if type(op) in ARITHMETIC:
                yield "arithmetic", _changed(node, op=ARITHMETIC[type(op)]())
            yield "statement removed", ast.Pass()
        case ast.UnaryOp(op=ast.Not()):
            yield "not removed", node.operand
        case ast.UnaryOp(op=ast.USub()):
            yield "arithmetic", node.operand
        case ast.BoolOp():
            yield "boolean", _changed(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        case ast.Constant(value=value) if isinstance(value, (bool, int, float)):
            is_default = field in {"defaults", "kw_defaults"} or isinstance(parent, ast.AnnAssign)
            for other in _numbers(value):
                yield "default value" if is_default else "constant", ast.Constant(other)
        case ast.Call(func=ast.Name(id=name)) if name in OPPOSITES:
            yield "opposite function", _changed(node, func=ast.Name(OPPOSITES[name], ast.Load()))
        case ast.Call(func=ast.Attribute(attr=name) as func) if name in OPPOSITES:
            yield "opposite function", _changed(node, func=_changed(func, attr=OPPOSITES[name]))
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield "statement removed", ast.Pass()
        case ast.Continue():
            yield "loop", ast.Break()
        case ast.Break():
            yield "loop", ast.Continue()
    is_condition = field == "test" and isinstance(parent, (ast.If, ast.While, ast.IfExp))
    if is_condition and isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr)):
        yield "condition negated", ast.UnaryOp(ast.Not(), node)


def _numbers(value: float) -> list[float]:
    if isinstance(value, bool):
        return [not value]
    return [value + 1, type(value)(0) if value else value - 1]


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
