"""What a module that a pass puts in must fulfil, checked as it is put in.

It is opaque: the emitted file holds the text of its class, and makes it from the arguments that it
keeps. What that takes is told to the author of the pass, with the line.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..catalog.defaults import constructor, parameters
from ..catalog.own_code import classes_in, file_of, told
from ..tracing.leaves import changed_by, is_torch_class, mentioned

OFFERED = ("torch", "nn", "F", "math")
"""What an emitted file imports for the classes of passes."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an inserted module, for its author."""

    code: str
    message: str
    line: int = 0
    help: str | None = None


def faults(module: nn.Module, pass_name: str, changed: Sequence[int]) -> Iterator[Fault]:
    """What is wrong with a module, the most telling first.

    Args:
        module: what is put in.
        pass_name: of the pass.
        changed: for each of its first outputs which argument it must be a changed form of.
    """
    cls = type(module)
    yield from _marks(module, pass_name, changed)
    for name, parameter in module.named_parameters():
        if not parameter.dim():
            yield Fault(
                "VR425",
                f"parameter '{name}' of {cls.__name__} is a scalar",
                _line(cls, name),
                "give it one axis, as torch.zeros(1): a scalar cannot be sharded",
            )
    yield from _arguments(module)
    own = {type(m) for m in module.modules() if not is_torch_class(type(m))}
    own |= {other for each in own for other in mentioned(each)}
    for each in sorted(own, key=lambda c: c is not cls):
        space = each.forward.__globals__.items()
        yield from _names(each, {name for name, c in space if isinstance(c, type) and c in own})


def _marks(module: nn.Module, pass_name: str, changed: Sequence[int]) -> Iterator[Fault]:
    """The two attributes of a class that say what it is."""
    cls = type(module)
    if getattr(cls, "inserted_by", None) != pass_name:
        yield Fault(
            "VR423",
            f"{cls.__name__} does not say which pass inserts it",
            _line(cls),
            f'write inserted_by = "{pass_name}" in the class',
        )
    declared = changed_by(module)
    if declared[: len(changed)] != tuple(changed):
        wanted = f"({', '.join(map(str, changed))}{',' * (len(changed) == 1)})"
        has = f"changes = {declared}" if declared else "no changes"
        yield Fault(
            "VR424",
            f"{cls.__name__} has {has}, and its place needs {wanted}",
            _line(cls),
            f"write changes = {wanted} in the class: for each output of forward the argument "
            "that it is a changed form of, or None",
        )


def _arguments(module: nn.Module) -> Iterator[Fault]:
    """Each argument of the constructor is kept under its name, and makes the same module."""
    cls = type(module)
    for name, parameter in parameters(cls).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield Fault(
                "VR421",
                f"the constructor of {cls.__name__} takes any arguments (*{name})",
                _line(cls),
                "name them, and keep each under its name",
            )
            return
        if not hasattr(module, name):
            yield Fault(
                "VR421",
                f"{cls.__name__} does not keep its argument '{name}'",
                _line(cls, name),
                f"write self.{name} = {name} in __init__",
            )
            return
    kept = constructor(module)
    try:
        with torch.device("meta"):
            again = cls(**kept)
    except Exception as error:
        yield Fault(
            "VR421",
            f"{cls.__name__} cannot be made again from the arguments that it keeps: {told(error)}",
            _line(cls),
        )
        return
    if odd := _other(module, again, kept):
        yield Fault(
            "VR421",
            f"{cls.__name__} made again from the arguments that it keeps is another: {odd}",
            _line(cls),
            "keep them as they are given",
        )


def _other(module: nn.Module, again: nn.Module, kept: dict[str, Any]) -> str:
    """The first difference between two modules, in words."""
    plain = (bool, int, float, str, tuple, type(None))
    for name, value in kept.items():
        if isinstance(value, plain) and getattr(again, name) != value:
            return f"its {name} is {getattr(again, name)!r} instead of {value!r}"
    first, second = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (module, again))
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            return f"its '{name}' is {second.get(name)} instead of {first.get(name)}"
    return ""


def _names(cls: type, known: set[str]) -> Iterator[Fault]:
    """Names that a class uses and that a file with its text alone does not have."""
    node = _node(cls)
    if node is None:
        return
    text = "".join(linecache.getlines(file_of(cls))[node.lineno - 1 : node.end_lineno])
    allowed = {*OFFERED, *known, *dir(builtins), cls.__name__}
    for name in sorted(_free_in(text) - allowed):
        line = next(
            (n.lineno for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name),
            node.lineno,
        )
        yield Fault(
            "VR422",
            f"{cls.__name__} uses '{name}', and only the text of the class is copied into "
            "what is written",
            line,
            f"write it as a method; a class of the file knows {', '.join(OFFERED)} and builtins",
        )


@lru_cache(maxsize=256)
def _free_in(text: str) -> frozenset[str]:
    """Names that the text of a class reads from outside of it."""
    return frozenset(_free(symtable.symtable(text, "<class>", "exec")))


def _free(table: symtable.SymbolTable) -> set[str]:
    """Names that a text reads from outside of it."""
    own = {s.get_name() for s in table.get_symbols() if s.is_assigned()}
    return _read(table) - (own if table.get_type() == "module" else set())


def _read(table: symtable.SymbolTable) -> set[str]:
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
    if table.get_type() == "module":
        found |= {s.get_name() for s in table.get_symbols() if s.is_referenced()}
    return found.union(*(_read(child) for child in table.get_children()))


def _node(cls: type) -> ast.ClassDef | None:
    """A class as it is written, if its file can be read."""
    lines = linecache.getlines(file_of(cls))
    try:
        return classes_in("".join(lines)).get(cls.__name__)
    except SyntaxError:
        return None


def _line(cls: type, name: str = "") -> int:
    """The line of a class, or that of the first use of a name in it."""
    node = _node(cls)
    if node is None:
        return 0
    uses = (
        n.lineno
        for n in ast.walk(node)
        if isinstance(n, (ast.arg, ast.Attribute))
        and name == (n.arg if isinstance(n, ast.arg) else n.attr)
    )
    return min(uses, default=node.lineno)
