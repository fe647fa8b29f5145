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
    gone = True
    while gone and trees:
        gone = False
        asked = _asked(trees)
        for tree in trees:
            named = others | asked.get(tree.name, set()) | asked[""] | _own_names(tree)
            kept = [s for s in tree.body if not _is_idle(s, named)]
            gone |= len(kept) < len(tree.body)
            tree.body = kept


def _asked(trees: Sequence[ast.ClassDef]) -> dict[str, set[str]]:
    """The attributes that are read of each class, and under no name those of any object."""
    alone = all(ast.unparse(b) == "nn.Module" for tree in trees for b in tree.bases)
    names = {tree.name for tree in trees}
    found: dict[str, set[str]] = {"": set()}
    for tree in trees:
        held = _held_by(tree, names)
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.Attribute)):
            owner = node.value.id if isinstance(node.value, ast.Name) else ast.unparse(node.value)
            known = tree.name if owner == "self" else held.get(owner, "")
            found.setdefault(known if alone else "", set()).add(node.attr)
    return found


def _held_by(tree: ast.ClassDef, names: set[str]) -> dict[str, str]:
    """`self.picking` and the class of which it always is."""
    found: dict[str, set[str]] = {}
    for statement in (s for s in ast.walk(tree) if isinstance(s, ast.Assign)):
        (target, *_), value = statement.targets, statement.value
        several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts, strict=False) if several else [(target, value)]  # type: ignore[attr-defined]
        for one, made in pairs:
            called = ast.unparse(made.func) if isinstance(made, ast.Call) else ""
            found.setdefault(ast.unparse(one), set()).add(called if called in names else "")
    return {owner: next(iter(made)) for owner, made in found.items() if len(made) == 1}


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
    before = ""
    while before != (before := ast.unparse(method)):
        names = [n for n in ast.walk(method) if isinstance(n, ast.Name)]
        read = {n.id for n in names if isinstance(n.ctx, ast.Load)}
        for block in bodies(method):
            block[:] = [s for s in block if not _is_idle_assignment(s, read)] or [ast.Pass()]
            for statement in block:
                _unname(statement, read)


def bodies(node: ast.AST) -> list[list[ast.stmt]]:
    """The statements of a method and of all that is in it, as the lists that hold them."""
    fields = [getattr(n, f, None) for n in ast.walk(node) for f in ("body", "orelse")]
    return [block for block in fields if isinstance(block, list) and block]


def _unname(statement: ast.stmt, read: set[str]) -> None:
    """`x, _ = f(x)` where nothing reads the second; of several values, each is one to drop."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Tuple):
        return
    target, value = statement.targets[0], statement.value
    idle = [isinstance(t, ast.Name) and t.id not in read and t.id != "_" for t in target.elts]
    if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
        pairs = zip(target.elts, value.elts, idle, strict=True)
        kept = [(t, v) for t, v, i in pairs if not (i and _is_pure(v))]
        if len(kept) == 1:
            statement.targets, statement.value = [kept[0][0]], kept[0][1]
        elif kept:
            target.elts, value.elts = map(list, zip(*kept, strict=True))
    elif all(isinstance(t, ast.Name) for t in target.elts) and not all(idle):
        for each, unread in zip(target.elts, idle, strict=True):
            if unread:
                each.id = "_"  # type: ignore[attr-defined]


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
    if isinstance(statement, ast.AugAssign):
        named = isinstance(statement.target, ast.Name) and statement.target.id not in read
        return named and _is_pure(statement.value)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target = statement.targets[0]
    return isinstance(target, ast.Name) and target.id not in read and _is_pure(statement.value)


_PURE = frozenset({"arange", "new_ones", "new_zeros", "expand", "expand_as", "size", "dim"})
"""Calls that do nothing but make a value, without a draw."""
_PLAIN = (
    ast.Name, ast.Constant, ast.Attribute, ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp,
    ast.Tuple, ast.List, ast.operator, ast.unaryop, ast.expr_context, ast.keyword,
)  # fmt: skip


def _is_pure(value: ast.expr) -> bool:
    """Whether nothing but its value tells that an expression was computed."""
    return all(
        isinstance(n, _PLAIN)
        or (isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in _PURE)
        for n in ast.walk(value)
    )


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
    lacking = [s for s in init.body if _is_none(s) and _attribute(s) not in read]
    init.body = [s for s in init.body if s not in lacking or _attribute(s) in arguments]


def _attribute(statement: ast.stmt) -> str:
    """The attribute of the module that a statement sets."""
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    own = isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
    return target.attr if own else ""  # type: ignore[union-attr]


def drop_empty(tree: ast.ClassDef) -> None:
    """Drops a constructor that does what it would without."""
    for method in methods_of(tree):
        plain = len(method.args.args) == 1 and not method.args.kwonlyargs
        only = [ast.unparse(s) for s in method.body] == ["super().__init__()"]
        if method.name == "__init__" and plain and only:
            tree.body.remove(method)


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
