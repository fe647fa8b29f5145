"""Classes made of printed source: of the modules at hand, and of those that are unpickled."""

from __future__ import annotations

import functools
import itertools
import linecache
import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..tracing.captured import Captured
from ..tracing.unit import Printed, Unit
from .tables import unpack

_counter = itertools.count()
_MADE: weakref.WeakValueDictionary[Printed, type[Unit]] = weakref.WeakValueDictionary()
"""Classes that are in use, so that equal source means one class."""


def classes(wanted: Printed) -> type[Unit]:
    """The class of a name in a printed source, which is run if no module of it is at hand."""
    found = _MADE.get(wanted)
    return _unit(wanted, _executed(wanted.text)) if found is None else found


def made(
    text: str, names: Mapping[str, bool], inserted: Mapping[str, type[nn.Module]] | None = None
) -> dict[str, type[Unit]]:
    """Classes of a printed source, as classes of units.

    Args:
        text: the source.
        names: which classes, and whether each is that of the root.
        inserted: the classes of passes that the source copies.
    """
    space = _execute(text)
    space |= inserted or {}
    return {name: _unit(Printed(text, name, root), space) for name, root in names.items()}


def _unit(printed: Printed, space: dict[str, Any]) -> type[Unit]:
    body = {"__module__": "vitrewrite.generated", "printed": printed}
    bases = space[printed.name], Captured if printed.root else Unit
    cls = _MADE[printed] = type(printed.name, bases, body)
    return cls


@functools.lru_cache(maxsize=4)  # for all classes of a model that is unpickled
def _executed(text: str) -> dict[str, Any]:
    return _execute(text)


def _execute(text: str) -> dict[str, Any]:
    filename = f"<vitrewrite {next(_counter)}>"
    space: dict[str, Any] = {
        "torch": torch, "nn": nn, "F": F, "math": math, "unpack": unpack,
        "OrderedDict": OrderedDict, "checkpoint": checkpoint, "__name__": "vitrewrite.generated",
    }  # fmt: skip
    code = compile(text, filename, "exec")
    # Tracebacks and `inspect.getsource` show the printed source.
    linecache.cache[filename] = len(text), None, text.splitlines(keepends=True), filename
    exec(code, space)  # our own printed source, made from typed values only
    return space
