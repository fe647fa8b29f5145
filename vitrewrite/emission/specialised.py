"""The syntax tree of a class that a pass inserts, for the modules of one model.

What all of them agree on is decided: a branch that none of them takes, an argument that none is
given, a method that nothing calls and an import of the compiler are gone. What is left computes the
same for each of these modules.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from .shortened import shorten
from .unread import Agreed, drop_unread, is_stored_alone, mentions, methods_of, write_tables

Node = TypeVar("Node", bound=ast.AST)
_PLAIN = (bool, int, float, str, type(None))
_UNKNOWN = object()
_BIASED, LAST_BIAS = ("F.linear", "F.conv2d"), 3
RECORDS = ("inserted_by", "changes")
_OUTSIDE = {"training", "running"}  # attributes that a model sets on its modules: mode and stitch


def specialise(tree: ast.ClassDef, known: Agreed) -> ast.ClassDef:
    """Decides in place what all modules agree on."""
    tree.body = [s for s in tree.body if not _is_record(s)]
    known.values = _fixed(tree, known.modules)
    before = ""
    while before != (before := ast.unparse(tree)):  # what is set in no branch left never changes
        for method in methods_of(tree):
            _plain_head(method)
            names = _arguments_of(method, known)
            fold = _Fold(known.values, names, making=method.name == "__init__")
            method.body = fold.block(method.body) or [ast.Pass()]
            _complete(method, known)
            drop_unread(method)
    own = {m.name for m in methods_of(tree)}
    for method in methods_of(tree):
        shorten(method, own)
    write_tables(tree, known.modules)
    return ast.fix_missing_locations(tree)


def _is_record(statement: ast.stmt) -> bool:
    """Whether it is what the compiler is told of a class, or a type."""
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(t, ast.Name) and t.id in RECORDS for t in targets)


# -- what is known ---------------------------------------------------------------------------------


def _fixed(tree: ast.ClassDef, modules: Sequence[nn.Module]) -> dict[str, Any]:
    """Attributes that only the constructor sets, with the value that all modules have."""
    changed = {
        n.attr
        for method in methods_of(tree)
        if method.name != "__init__"
        for n in ast.walk(method)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, (ast.Store, ast.Del))
    }
    names = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    found: dict[str, Any] = {}
    for name in names - changed - _OUTSIDE:
        values = [m.__dict__.get(name, _UNKNOWN) for m in modules]
        if not values:
            continue
        if all(_is_plain(v) and type(v) is type(values[0]) and v == values[0] for v in values):
            found[name] = values[0]
        elif all(_held(m, name) is not None for m in modules):
            found[name] = ...  # something that is not None
        elif all(_held(m, name) is None and _has(m, name) for m in modules):
            found[name] = None
    return found


def _has(module: nn.Module, name: str) -> bool:
    return any(name in t for t in (module._modules, module._parameters, module._buffers))


def _held(module: nn.Module, name: str) -> Any:
    tables = (module._modules, module._parameters, module._buffers)
    return next((t[name] for t in tables if t.get(name) is not None), None)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _arguments_of(method: ast.FunctionDef, known: Agreed) -> dict[str, Any]:
    """Arguments whose value is known, as far as the method does not set them."""
    names = [n for n in ast.walk(method) if isinstance(n, ast.Name)]
    stored = {n.id for n in names if isinstance(n.ctx, ast.Store)}
    arguments = [a.arg for a in method.args.args[1:]]
    if method.name == "__init__":
        return {k: known.values[k] for k in arguments if k in known.values and k not in stored}
    return {k: v for k, v in _left_out(method, known).items() if k not in stored}


def _left_out(method: ast.FunctionDef, known: Agreed) -> dict[str, Any]:
    """Arguments that no call gives, with their default."""
    if method.name != "forward" or known.given is None:
        return {}
    arguments = [a.arg for a in method.args.args[1:]]
    defaults = dict(zip(reversed(arguments), reversed(method.args.defaults), strict=False))
    return {
        k: d.value
        for k in arguments[known.given :]
        if isinstance(d := defaults.get(k), ast.Constant)
    }


def _complete(method: ast.FunctionDef, known: Agreed) -> None:
    """Folds `size = ones if size is None else size` where none is given."""
    for name, value in _left_out(method, known).items():
        first = next((s for s in method.body if mentions(s, name)), None)
        if isinstance(first, ast.Assign) and is_stored_alone(first, name):
            first.value = _Fold(known.values, {name: value}).visit(first.value)


# -- folding ---------------------------------------------------------------------------------------


class _Fold(ast.NodeTransformer):
    """Decides what depends on known values alone."""

    def __init__(
        self, values: Mapping[str, Any], names: Mapping[str, Any], *, making: bool = False
    ) -> None:
        self.values, self.names, self.making = values, names, making

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The statements that are left of some, up to the first that leaves."""
        made: list[ast.stmt] = []
        for statement in body:
            if _is_reset(statement):
                continue
            new = self.visit(statement)
            made += [s for s in (new if isinstance(new, list) else [new]) if not _is_idle(s)]
            if made and isinstance(made[-1], (ast.Return, ast.Raise)):
                break
        return made

    def visit_If(self, node: ast.If) -> Any:
        """Keeps the branch that is taken."""
        test = self.value(node.test)
        if self.making and not node.orelse and isinstance(node.body[-1], ast.Raise):
            return []  # the modules are made, so their arguments are valid
        if test is not _UNKNOWN:
            return self.block(node.body if test else node.orelse)
        node.test = self.visit(node.test)
        node.body = self.block(node.body)
        node.orelse = self.block(node.orelse)
        if not node.body and not node.orelse:
            return []
        node.body = node.body or [ast.Pass()]
        return node

    def visit_For(self, node: ast.For) -> Any:
        """Folds a loop."""
        return self._inside(node)

    def visit_While(self, node: ast.While) -> Any:
        """Folds a loop."""
        return self._inside(node)

    def visit_With(self, node: ast.With) -> Any:
        """Folds a block."""
        return self._inside(node)

    def _inside(self, node: Any) -> Any:
        body = node.body
        node.body = []
        self.generic_visit(node)
        node.body = self.block(body) or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        """Folds a function inside a method."""
        _plain_head(node)
        node.body = self.block(node.body) or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        """Drops the type of a variable."""
        self.generic_visit(node)
        if node.value is None:
            return []
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        """Keeps the value that is chosen."""
        test = self.value(node.test)
        if test is not _UNKNOWN:
            return self.visit(node.body if test else node.orelse)
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        """Drops operands that decide nothing."""
        idle = isinstance(node.op, ast.And)
        *first, last = node.values
        known = [self.value(v) for v in first]
        left = [v for v, k in zip(first, known, strict=True) if k is _UNKNOWN or bool(k) != idle]
        end = self.value(last)
        idly = end is not _UNKNOWN and bool(end) == idle and bool(left) and _is_truth(left[-1])
        node.values = [self.visit(v) for v in (left if idly else (*left, last))]
        return node.values[0] if len(node.values) == 1 else node

    def visit_Call(self, node: ast.Call) -> Any:
        """Parameters are not left as whatever memory holds: no weights are drawn."""
        self.generic_visit(node)
        if (given := self._given_back(node)) is not None:
            return given
        with_bias = ast.unparse(node.func) in _BIASED and len(node.args) == LAST_BIAS
        if with_bias and self.value(node.args[-1]) is None:
            node.args.pop()
        if ast.unparse(node.func) == "nn.Parameter":
            for each in ast.walk(node):
                if isinstance(each, ast.Attribute) and ast.unparse(each) == "torch.empty":
                    each.attr = "zeros"
        return node

    def _given_back(self, node: ast.Call) -> ast.expr | None:
        """What a call yields as it was given: `x.movedim(-1, -1)`, or dropout of none."""
        known = [self.value(a) for a in node.args]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "movedim":
            return node.func.value if known == [-1, -1] else None
        drops = ast.unparse(node.func) == "F.dropout" and len(known) > 1
        return node.args[0] if drops and known[1] == 0.0 else None

    def value(self, node: ast.expr) -> Any:
        """The value of an expression, if it is known."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id == "self"
            found = self.values.get(node.attr, _UNKNOWN) if own else _UNKNOWN
            return _UNKNOWN if found is ... else found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            inner = self.value(node.operand)
            if inner is _UNKNOWN:
                return inner
            return (not inner) if isinstance(node.op, ast.Not) else -inner
        if isinstance(node, ast.BoolOp):
            return self._bool(node)
        return self._compared(node) if isinstance(node, ast.Compare) else _UNKNOWN

    def _bool(self, node: ast.BoolOp) -> Any:
        values = [self.value(v) for v in node.values]
        ends = isinstance(node.op, ast.Or)
        if any(v is not _UNKNOWN and bool(v) == ends for v in values):
            return ends
        return _UNKNOWN if _UNKNOWN in values else values[-1]

    def _compared(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            return _UNKNOWN
        op, right = node.ops[0], self.value(node.comparators[0])
        if isinstance(op, (ast.Is, ast.IsNot)) and right is None and self._is_there(node.left):
            return isinstance(op, ast.IsNot)
        left = self.value(node.left)
        if left is _UNKNOWN or right is _UNKNOWN:
            return _UNKNOWN
        known = {ast.Eq: "__eq__", ast.NotEq: "__ne__"}
        if isinstance(op, (ast.Is, ast.IsNot)):
            return (left is right) == isinstance(op, ast.Is)
        if type(op) in known:
            return (left == right) == isinstance(op, ast.Eq)
        return _UNKNOWN

    def _is_there(self, node: ast.expr) -> bool:
        own = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        return own and self.values.get(node.attr) is ...  # type: ignore[attr-defined]


def _is_truth(node: ast.expr) -> bool:
    """Whether an expression is True or False, and nothing that stands for it."""
    negated = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
    return negated or isinstance(node, ast.Compare) or ast.unparse(node) == "self.training"


def _is_reset(statement: ast.stmt) -> bool:
    """Whether a statement draws weights, which `load` brings."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
    return named and call.func.attr == "reset_parameters"  # type: ignore[union-attr]


def _is_idle(statement: ast.stmt) -> bool:
    """Whether it is what is left of a choice: `x = x`."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Name):
        return False
    name = statement.value.id
    return all(isinstance(t, ast.Name) and t.id == name for t in statement.targets)


def _plain_head(method: ast.FunctionDef) -> None:
    """Drops the types of a method's arguments and results, as printed classes have none."""
    method.returns = None
    spread = (method.args.vararg, method.args.kwarg)
    for argument in (*method.args.args, *method.args.kwonlyargs, *filter(None, spread)):
        argument.annotation = None
