"""Classes made of printed source: of the modules at hand, and of those that are unpickled."""

from __future__ import annotations

import functools
import itertools
import linecache
import math
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..text import Told
from ..tracing.packing import PLAIN, Packing
from ..tracing.unit import Unit
from .captured import Captured
from .tables import unpack

_counter = itertools.count()
_MADE: weakref.WeakValueDictionary[Printed, type[Unit]] = weakref.WeakValueDictionary()
"""Classes that are in use, so that equal source means one class."""


def classes(wanted: Printed) -> type[Unit]:
    """The class of a name in a printed source, which is run if no module of it is at hand."""
    found = _MADE.get(wanted)
    return _unit(wanted, _executed(wanted.text)) if found is None else found


def made(
    text: str,
    names: Mapping[str, bool],
    inserted: Mapping[str, type[nn.Module]] | None = None,
    packings: Mapping[str, Packing] | None = None,
) -> dict[str, type[Unit]]:
    """Classes of a printed source, as classes of units.

    Args:
        text: the source.
        names: which classes, and whether each is that of the root.
        inserted: the classes of passes that the source copies.
        packings: what forwards take as one argument.
    """
    known = packings or {}
    space = _execute(text)
    space |= inserted or {}
    printed = (Printed(text, n, root, known.get(n, PLAIN)) for n, root in names.items())
    return {each.name: _unit(each, space) for each in printed}


def _unit(printed: Printed, space: dict[str, Any]) -> type[Unit]:
    def reduced(unit: Unit, protocol: Any) -> Any:  # a pickle has the source of the class too
        return _instance, (printed,), dict(unit.__dict__)

    body = {
        "__module__": "vitrewrite.generated", "printed": printed, "packing": printed.packing,
        "__reduce_ex__": reduced,
    }  # fmt: skip
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


@dataclass(frozen=True)
class Printed(Told):
    """Where the class of a module comes from: it is printed source, and in no file.

    A pickled module carries that source, and so can be loaded in any process that has vitrewrite.
    To load it is to run the source, as unpickling runs whatever the pickle says: load only what you
    would run. `torch.load(weights_only=True)` refuses it; weights to pass on are a `state_dict`.

    Attributes:
        text: all classes of the model.
        name: that of the module.
        root: whether it is the whole model.
        packing: what its forward takes as one argument.
    """

    text: str
    name: str
    root: bool
    packing: Packing = PLAIN

    def cls(self) -> type[Unit]:
        """The class; that of the modules at hand, if the same source was printed here."""
        return classes(self)


def _instance(printed: Printed) -> Unit:
    cls = printed.cls()
    return cls.__new__(cls)
