"""Turns a tree of units into instances of the classes that would be emitted."""

from __future__ import annotations

import itertools
import linecache
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..capture.unit import Unit
from .classes import is_chain
from .source import Source, print_classes
from .tables import unpack

_counter = itertools.count()


def realise(root: nn.Module) -> Source:
    """Gives every unit below `root` its printed class; the state stays where it is."""
    source = print_classes(root)
    namespace = _execute(source)
    for module in list(root.modules()):
        if not isinstance(module, Unit):
            continue
        if is_chain(module):
            module.__class__ = nn.Sequential
            continue
        cls = source.table.of[id(module)]
        index = next(i for i, u in enumerate(cls.units) if u is module)
        module.__class__ = namespace[cls.name]
        for name in cls.parameters.stored:
            setattr(module, name, cls.parameters.value(name, index))
    return source


def _execute(source: Source) -> dict[str, Any]:
    filename = f"<vitrewrite {next(_counter)}>"
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": F, "math": math, "unpack": unpack}
    space["__name__"] = "vitrewrite.generated"
    code = compile(source.text, filename, "exec")
    # Tracebacks and `inspect.getsource` show the printed source.
    linecache.cache[filename] = (
        len(source.text), None, source.text.splitlines(keepends=True), filename,
    )  # fmt: skip
    exec(code, space)  # our own printed source, made from typed values only
    for cls in source.inserted:
        space[cls.__name__] = cls
    return space
