"""Draws mutants: one operator, comparison, constant, `and` or `or` changed, a `not` dropped, two
arguments swapped, or a line taken out."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_SWAPS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: `source` is the whole file with it."""

    file: str
    line: int
    before: str
    after: str
    source: str


def draw(root: Path, packages: Sequence[str], generator: random.Random) -> Iterator[Mutant]:
    """Mutants without end, files weighed by how many places to change they have."""
    paths = [p for package in packages for p in sorted((root / package).rglob("*.py"))]
    places = [(p, i) for p in paths for i in range(sum(1 for _ in changes(_parsed(p))))]
    while True:
        path, number = generator.choice(places)
        yield mutant(root, path, number)


def mutant(root: Path, path: Path, number: int) -> Mutant:
    """The change of a file with a number."""
    tree = _parsed(path)
    node, new = list(changes(tree))[number]
    old = ast.unparse(node)
    source = path.read_text()
    lines = source.splitlines(keepends=True)
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None
    first, last = node.lineno - 1, node.end_lineno - 1
    start = lines[first].encode()[: node.col_offset].decode()
    end = lines[last].encode()[node.end_col_offset :].decode()
    text = ast.unparse(new)
    text = f"({text})" if isinstance(new, ast.expr) else text
    changed = "".join([*lines[:first], f"{start}{text}{end}", *lines[last + 1 :]])
    return Mutant(path.relative_to(root).as_posix(), node.lineno, old, text, changed)


def changes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes of a module with what they become, in order; not those of annotations or strings."""
    skipped = {id(n) for a in _idle(tree) for n in ast.walk(a)}
    for node in ast.walk(tree):
        if id(node) not in skipped:
            yield from ((node, new) for new in _changed(node))


def _idle(tree: ast.AST) -> Iterator[ast.AST]:
    """Parts of a module that no run sees: annotations, text, and what is for type checkers."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (found := getattr(node, name, None)) is not None:
                yield found
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield node
        if isinstance(node, ast.JoinedStr | ast.Assert | ast.Raise):
            yield node


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPS:
        yield _with(node, op=_SWAPS[type(node.op)]())
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        yield _with(node, ops=[_SWAPS[type(node.ops[0])](), *node.ops[1:]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield _with(node, value=not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield from (_with(node, value=node.value + step) for step in (1, -1))
    elif isinstance(node, ast.Call) and len(node.args) == 2 and not _starred(node):
        yield _with(node, args=node.args[::-1])
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield _with(node, value=ast.Constant(None))
    elif isinstance(node, ast.AugAssign) or _is_call(node):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()


def _is_call(node: ast.AST) -> bool:
    """Whether a line calls something only for what it does."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Yield)


def _starred(call: ast.Call) -> bool:
    return any(isinstance(a, ast.Starred) for a in call.args)


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())
