"""Methods of an inserted class without the variables that its branches needed and it does not."""

from __future__ import annotations

import ast
from itertools import pairwise

from .unread import bodies
from .wrap import WIDTH

_LATER = (ast.FunctionDef, ast.Lambda, ast.GeneratorExp)  # what they read, they read afterwards


def shorten(method: ast.FunctionDef, methods: set[str]) -> None:
    """Writes in place what is named only to be called or returned at once.

    Args:
        method: of a class.
        methods: the names of all of them.
    """
    names = [n for n in ast.walk(method) if isinstance(n, ast.Name)]
    stored = [n.id for n in names if isinstance(n.ctx, ast.Store)]
    later = {
        n.id
        for f in ast.walk(method)
        if isinstance(f, _LATER) and f is not method
        for n in ast.walk(f)
        if isinstance(n, ast.Name)
    }
    for block in bodies(method):
        for statement in block[:-1]:
            name = _alias(statement, methods)
            if name is not None and stored.count(name) == 1:
                block.remove(statement)
                _Replaced(name, statement.value).visit(method)  # type: ignore[attr-defined]
        _ask_at_once(block, names, later)
        _return_at_once(block, later)
    _name_once(method, later)


def _alias(statement: ast.stmt, methods: set[str]) -> str | None:
    """The variable that is another name for a method."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target, value = statement.targets[0], statement.value
    own = isinstance(value, ast.Attribute) and ast.unparse(value.value) == "self"
    if not own or value.attr not in methods:  # type: ignore[attr-defined]
        return None
    return target.id if isinstance(target, ast.Name) else None


class _Replaced(ast.NodeTransformer):
    def __init__(self, name: str, value: ast.expr) -> None:
        self.name, self.value = name, value

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """What a variable stands for."""
        return self.value if node.id == self.name else node


def _ask_at_once(block: list[ast.stmt], names: list[ast.Name], later: set[str]) -> None:
    """`fuse = a > 0`, `if fuse:` is `if a > 0:` where nothing else reads it."""
    for made, asked in list(pairwise(block)):
        if not isinstance(made, ast.Assign) or not isinstance(asked, ast.If):
            continue
        name = _second_name(made, ast.expr)
        plain = isinstance(asked.test, ast.Name) and asked.test.id == name
        if plain and name not in later and [n.id for n in names].count(str(name)) == 2:
            asked.test = made.value
            block.remove(made)


def _name_once(method: ast.FunctionDef, later: set[str]) -> None:
    """`x = z` in front, of an argument that is not read besides or not set: all is said of z."""
    for first in [s for s in method.body[:-1] if _second_name(s, ast.Name)]:
        name, given = _second_name(first, ast.Name), first.value.id  # type: ignore[attr-defined]
        names = [n for n in ast.walk(method) if isinstance(n, ast.Name)]
        stored = [n.id for n in names if isinstance(n.ctx, ast.Store)]
        before = [s for s in method.body[: method.body.index(first)] if not isinstance(s, ast.Expr)]
        alone = [n.id for n in names].count(given) == 1 and not before
        arguments = [a.arg for a in method.args.args[1:]]
        fixed = stored.count(str(name)) == 1 and given not in stored and name not in arguments
        own = given in arguments
        if own and (alone or fixed) and not {name, given} & later:
            for each in names:
                each.id = given if each.id == name else each.id
            method.body.remove(first)


def _second_name(statement: ast.stmt, kind: type[ast.expr]) -> str | None:
    """The variable that a statement sets, if it is one, to an expression of a kind."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, kind):
        return None
    (target, *more) = statement.targets
    return target.id if isinstance(target, ast.Name) and not more else None


def _return_at_once(block: list[ast.stmt], later: set[str]) -> None:
    """`x = f(x)`, `return x` is `return f(x)`; so is the last of several that are returned."""
    while len(block) > 1:
        made, left = block[-2:]
        if not isinstance(left, ast.Return) or not isinstance(made, ast.Assign):
            return
        target, value = made.targets[0], left.value
        last = value.elts[-1] if isinstance(value, ast.Tuple) and value.elts else value
        others = value.elts[:-1] if isinstance(value, ast.Tuple) else []
        if len(made.targets) > 1 or not isinstance(target, ast.Name) or target.id in later:
            return
        if not isinstance(last, ast.Name) or last.id != target.id:
            return
        if not all(isinstance(o, ast.Name) and o.id != target.id for o in others):
            return
        new = ast.Tuple([*others, made.value], ast.Load()) if others else made.value
        short = ast.Return(new)
        if len(ast.unparse(short)) > WIDTH - 8 or (others and isinstance(made.value, ast.Tuple)):
            return
        short.lineno, short.col_offset = made.lineno, made.col_offset  # comments go by lines
        short.end_lineno, short.end_col_offset = left.end_lineno, left.end_col_offset
        block[-2:] = [ast.fix_missing_locations(short)]
