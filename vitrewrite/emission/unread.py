"""What nothing reads any more in the syntax tree of an inserted class: it is taken out."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .tables import is_short, table

_KEPT = ("__init__", "forward", "_apply")


@dataclass
class Agreed:
    """What is known of the modules of a class.

    Attributes:
        modules: all of them.
        given: how many arguments their calls have at most; None if that cannot be told.
        inner: whether modules that passes insert make all of them.
    """

    modules: list[nn.Module]
    given: int | None = None
    inner: bool = False
    values: dict[str, Any] = field(default_factory=dict)  # of attributes that never change


def methods_of(tree: ast.ClassDef) -> list[ast.FunctionDef]:
    """The methods of a class."""
    return [s for s in tree.body if isinstance(s, ast.FunctionDef)]


def drop_methods(trees: Sequence[ast.ClassDef], others: set[str]) -> None:
    """Drops methods that neither these classes nor others name."""
    while trees:
        named = others | {
            n.attr for t in trees for n in ast.walk(t) if isinstance(n, ast.Attribute)
        }
        gone = False
        for tree in trees:
            kept = [s for s in tree.body if not _is_idle(s, named | _own_names(tree))]
            gone |= len(kept) < len(tree.body)
            tree.body = kept
        if not gone:
            return


def arguments_left(tree: ast.ClassDef) -> list[str]:
    """The arguments of the constructor."""
    init = next((m for m in methods_of(tree) if m.name == "__init__"), None)
    return [a.arg for a in (*init.args.args, *init.args.kwonlyargs)] if init else []


def _own_names(tree: ast.ClassDef) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _is_idle(statement: ast.stmt, named: set[str]) -> bool:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        plain = isinstance(target, ast.Name) and isinstance(statement.value, (ast.Dict, ast.List))
        return plain and target.id not in named  # type: ignore[attr-defined]
    if not isinstance(statement, ast.FunctionDef):
        return False
    name = statement.name
    return name not in _KEPT and not name.startswith("__") and name not in named


def drop_unread(method: ast.FunctionDef) -> None:
    """Drops variables that nothing reads any more, and what is set again before it is read."""
    for statement in [s for s in method.body if _is_none(s)]:
        rest = method.body[method.body.index(statement) + 1 :]
        targets = {ast.unparse(t) for t in statement.targets}  # type: ignore[attr-defined]
        again = {ast.unparse(t) for s in rest if isinstance(s, ast.Assign) for t in s.targets}
        if targets <= again and not any(_mentions(s, targets) for s in rest):
            method.body.remove(statement)
    while True:
        names = [n for n in ast.walk(method) if isinstance(n, ast.Name)]
        read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
        idle = [s for s in method.body if _is_idle_assignment(s, read)]
        if not idle:
            return
        method.body = [s for s in method.body if s not in idle] or [ast.Pass()]


def _is_none(statement: ast.stmt) -> bool:
    plain = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    return plain and statement.value.value is None  # type: ignore[attr-defined]


def _mentions(statement: ast.stmt, texts: set[str]) -> bool:
    loads = (n for n in ast.walk(statement) if isinstance(n, ast.Attribute))
    return any(ast.unparse(n) in texts and isinstance(n.ctx, ast.Load) for n in loads)


def write_tables(tree: ast.ClassDef, modules: Sequence[nn.Module]) -> None:
    """Writes short tables that a method computes as what they are in all modules."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "self.register_buffer":
            continue
        name = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        own = [n for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)]
        called = any(ast.unparse(n).startswith("self.") for n in own)
        tables = [m._buffers.get(str(name)) for m in modules]
        if called and tables and all(isinstance(t, torch.Tensor) for t in tables):
            texts = {table(t) for t in tables if t is not None and is_short(t)}
            if len(texts) == 1 and all(t is not None and is_short(t) for t in tables):
                node.args[1] = ast.parse(texts.pop(), mode="eval").body


def _is_idle_assignment(statement: ast.stmt, read: set[str]) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target = statement.targets[0]
    plain = isinstance(statement.value, (ast.Name, ast.Constant, ast.Attribute))
    return plain and isinstance(target, ast.Name) and target.id not in read


def drop_arguments(tree: ast.ClassDef, known: Agreed) -> None:
    """Drops arguments that have their default everywhere and that nothing reads any more."""
    methods = {m.name: m for m in methods_of(tree)}
    forward, init = methods.get("forward"), methods.get("__init__")
    if forward is not None and known.given is not None:
        while len(forward.args.args) > known.given + 1 and forward.args.defaults:
            if _reads(forward, forward.args.args[-1].arg):
                break
            forward.args.args.pop()
            forward.args.defaults.pop()
    if init is None:
        return
    for name, default in _defaults(init).items():
        value = default.value if isinstance(default, ast.Constant) else ast.unparse(default)
        same = name in known.values and (
            known.values[name] == value or repr(known.values[name]) == value
        )
        others = [s for s in tree.body if s is not init]
        if same and not any(_names(s, name) for s in others) and _only_stored(init, name):
            _forget(init, name)


def drop_unread_stores(tree: ast.ClassDef, trees: Sequence[ast.ClassDef], known: Agreed) -> None:
    """Drops attributes that no class reads, and arguments that are for nothing else."""
    init = next((m for m in methods_of(tree) if m.name == "__init__"), None)
    calls = _calls(tree.name, trees)
    if init is None or calls is None:
        return
    read = {
        n.attr
        for t in trees
        for n in ast.walk(t)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Load)
        and (t is tree or ast.unparse(n.value) != "self")
    }
    arguments = [a.arg for a in init.args.args[1:]]
    for name in [a for a in arguments if a not in read and len(_places(init, a)) == 1]:
        if _only_stored(init, name):
            place = [a.arg for a in init.args.args].index(name) - 1
            _forget(init, name)
            for call in calls:
                call.keywords = [k for k in call.keywords if k.arg != name]
                del call.args[place : place + 1]
        elif known.inner:
            _unstore(init, name)


def _calls(name: str, trees: Sequence[ast.ClassDef]) -> list[ast.Call] | None:
    """The calls that make modules of a class, if it is named for nothing else."""
    nodes = [n for t in trees for n in ast.walk(t)]
    found = [
        n
        for n in nodes
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name
    ]
    uses = sum(isinstance(n, ast.Name) and n.id == name for n in nodes)
    spread = any(isinstance(a, ast.Starred) for call in found for a in call.args)
    spread |= any(k.arg is None for call in found for k in call.keywords)
    return None if spread or uses != len(found) else found


def _reads(method: ast.FunctionDef, name: str) -> bool:
    """Whether a method reads an argument, and not only what it sets it to."""
    first = next((s for s in method.body if mentions(s, name)), None)
    if first is None or not is_stored_alone(first, name):
        return first is not None
    assert isinstance(first, ast.Assign)
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(first.value))


def mentions(statement: ast.stmt, name: str) -> bool:
    """Whether a statement reads or sets a variable."""
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(statement))


def is_stored_alone(statement: ast.stmt, name: str) -> bool:
    """Whether a statement sets a variable and nothing else."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target = statement.targets[0]
    return isinstance(target, ast.Name) and target.id == name


def _names(statement: ast.stmt, attribute: str) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr == attribute for n in ast.walk(statement))


def _defaults(init: ast.FunctionDef) -> dict[str, ast.expr]:
    arguments = [a.arg for a in init.args.args]
    found = dict(zip(reversed(arguments), reversed(init.args.defaults), strict=False))
    pairs = zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    return found | {a.arg: d for a, d in pairs if d is not None}


def _only_stored(init: ast.FunctionDef, name: str) -> bool:
    """Whether a constructor does nothing with an argument but keep it."""
    uses = sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(init))
    stores = sum(isinstance(n, ast.Attribute) and n.attr == name for n in ast.walk(init))
    return uses <= 1 and stores <= 1 and uses == stores == len(_places(init, name))


def _places(init: ast.FunctionDef, name: str) -> list[tuple[ast.Assign, int | None]]:
    """Where `self.name = name` stands, alone or as one of several."""
    found: list[tuple[ast.Assign, int | None]] = []
    for statement in init.body:
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts, strict=False))
            found += [(statement, i) for i, pair in enumerate(pairs) if _keeps(*pair, name)]
        elif _keeps(target, value, name):
            found.append((statement, None))
    return found


def _keeps(target: ast.expr, value: ast.expr, name: str) -> bool:
    own = isinstance(target, ast.Attribute) and ast.unparse(target) == f"self.{name}"
    return own and isinstance(value, ast.Name) and value.id == name


def _unstore(init: ast.FunctionDef, name: str) -> None:
    for statement, place in _places(init, name):
        target, value = statement.targets[0], statement.value
        if place is None:
            init.body.remove(statement)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            del target.elts[place], value.elts[place]
            if len(target.elts) == 1:
                statement.targets, statement.value = [target.elts[0]], value.elts[0]


def _forget(init: ast.FunctionDef, name: str) -> None:
    _unstore(init, name)
    names = [a.arg for a in init.args.args]
    if name not in names:
        at = [a.arg for a in init.args.kwonlyargs].index(name)
        del init.args.kwonlyargs[at], init.args.kw_defaults[at]
        return
    at = names.index(name)
    behind = len(names) - at
    if behind <= len(init.args.defaults):
        del init.args.defaults[-behind]
    del init.args.args[at]
