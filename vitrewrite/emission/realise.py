"""Turns a tree of units into instances of the classes that would be emitted."""

from __future__ import annotations

from torch import nn

from ..tracing.unit import Unit
from .access import is_chain
from .classes import Classes
from .generated import made
from .source import Source, print_classes


def realise(root: nn.Module) -> Source:
    """Gives every unit below `root` its printed class; the state stays where it is."""
    source, table = print_classes(root)
    names = {cls.name: root in cls.units for cls in table.all}
    found = made(source.text, names, {name: cls for cls, name in source.inserted.items()})
    for module in list(root.modules()):
        if isinstance(module, Unit):
            _become(module, table, found)
    root.__dict__["classes"] = {c.name: c.template for c in table.all if c.template}
    return source


def _become(unit: Unit, table: Classes, found: dict[str, type[Unit]]) -> None:
    if is_chain(unit):
        unit.__class__ = Chain
        return
    cls = table.of[id(unit)]
    if cls.name not in found:  # nothing calls it and it holds nothing
        return
    unit.__class__ = found[cls.name]
    index = next(i for i, u in enumerate(cls.units) if u is unit)
    for name in cls.parameters.stored:
        unit.__dict__[name] = cls.parameters.value(name, index)


class Chain(nn.Sequential, Unit):
    """A unit that calls its children in turn; emitted as a plain `nn.Sequential`."""
