"""Turns a tree of units into instances of the classes that would be emitted."""

from __future__ import annotations

import itertools
import linecache
import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..tracing.captured import Captured
from ..tracing.unit import Unit
from .access import is_chain
from .source import Source, print_classes
from .tables import unpack

_counter = itertools.count()


def realise(root: nn.Module) -> Source:
    """Gives every unit below `root` its printed class; the state stays where it is."""
    source = print_classes(root)
    namespace = _execute(source)
    made: dict[str, type[Unit]] = {}
    for cls in source.table.all:
        bases = (namespace[cls.name], Captured if root in cls.units else Unit)
        made[cls.name] = type(cls.name, bases, {"__module__": "vitrewrite.generated"})
    for module in list(root.modules()):
        if isinstance(module, Unit):
            _become(module, source, made)
    root.__dict__["classes"] = {c.name: c.template for c in source.table.all if c.template}
    return source


def _become(unit: Unit, source: Source, made: dict[str, type[Unit]]) -> None:
    if is_chain(unit):
        unit.__class__ = Chain
        return
    cls = source.table.of[id(unit)]
    if cls.name not in made:  # nothing calls it and it holds nothing
        return
    unit.__class__ = made[cls.name]
    index = next(i for i, u in enumerate(cls.units) if u is unit)
    for name in cls.parameters.stored:
        setattr(unit, name, cls.parameters.value(name, index))


class Chain(nn.Sequential, Unit):
    """A unit that calls its children in turn; emitted as a plain `nn.Sequential`."""


def _execute(source: Source) -> dict[str, Any]:
    filename = f"<vitrewrite {next(_counter)}>"
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math, "unpack": unpack}
    space["OrderedDict"] = OrderedDict
    space["__name__"] = "vitrewrite.generated"
    code = compile(source.text, filename, "exec")
    # Tracebacks and `inspect.getsource` show the printed source.
    linecache.cache[filename] = (
        len(source.text), None, source.text.splitlines(keepends=True), filename,
    )  # fmt: skip
    exec(code, space)  # our own printed source, made from typed values only
    space |= {name: cls for cls, name in source.inserted.items()}
    return space
