"""Turns a tree of units into instances of the classes that would be emitted."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..errors import EmitError
from ..tracing import walk
from ..tracing.about import tell
from ..tracing.unit import Unit
from .access import is_chain
from .classes import Care, Classes
from .fresh import settle_fresh
from .generated import made
from .once import settled
from .proof import Doubt, find_unproved
from .source import Source, print_classes
from .splitting import split_inputs
from .widening import widen


def realise(root: nn.Module) -> Source:
    """Gives every unit below `root` its printed class; the state stays where it is.

    What is printed is proved for every module. Where a class does not hold for one, it is printed
    without loops; if that is not enough, each of its modules has a class of its own. Then only what
    is known to differ is refused: line by line, a graph that no symbol can go through is printed.

    Raises:
        EmitError: VR812 if a class still computes something else than its graph.
    """
    care = Care()
    settle_fresh(root)
    widen(root)
    split_inputs(root)
    while True:
        with settled():
            source, table = print_classes(root, care)
            _realise(root, source, table)
            wrong = find_unproved(root, table.of)
        if not _retreat(care, table, wrong):
            tell(root, classes={c.name: c.template for c in table.all if c.template})
            return source


def _realise(root: nn.Module, source: Source, table: Classes) -> None:
    names = {cls.name: root in cls.units for cls in table.all}
    inserted = {name: cls for cls, name in source.inserted.items()}
    found = made(source.text, names, inserted, {cls.name: cls.packing for cls in table.all})
    for module in walk.modules(root):
        if isinstance(module, Unit):
            _become(module, table, found)


def _retreat(care: Care, table: Classes, wrong: Mapping[int, Doubt]) -> bool:
    """Has what is not proved written with more care; whether there is anything left to do."""
    again = False
    for cls, doubt in {table.of[unit]: doubt for unit, doubt in wrong.items()}.items():
        alike = {id(each) for each in cls.units}
        if cls.joined and not alike <= care.apart:
            care.apart |= alike
            again = True
        elif not alike <= care.alone:
            care.alone |= alike & care.plain
            care.plain |= alike
            again = True
        elif doubt.differs:
            raise EmitError(
                "VR812",
                f"the class that was printed for {cls.name} differs from its graph: {doubt.why}",
                suggestion="nothing was written; please report the model and the spec",
            )
    return again


def _become(unit: Unit, table: Classes, found: dict[str, type[Unit]]) -> None:
    if is_chain(unit):
        unit.__class__ = Chain
        return
    cls = table.of[id(unit)]
    if cls not in table.all:  # nothing calls it and it holds nothing: it runs its graph
        unit.__class__ = Unit
        return
    unit.__class__ = found[cls.name]
    index = next(i for i, u in enumerate(cls.units) if u is unit)
    for held in ("_modules", "_parameters", "_buffers"):  # of its class, not all have what some do
        for name in getattr(cls.sample, held):
            getattr(unit, held).setdefault(name, None)
    unit._non_persistent_buffers_set |= cls.sample._non_persistent_buffers_set
    for name in cls.parameters.stored:
        unit.__dict__[name] = cls.parameters.value(name, index)


class Chain(nn.Sequential, Unit):
    """A unit that calls its children in turn; emitted as a plain `nn.Sequential`."""
