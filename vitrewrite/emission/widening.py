"""Gives modules of one kind the same outputs, where some yield what nobody reads.

Of two classes that differ in this alone, one is enough. What is yielded in addition has to be at
hand: a size, or an item or a size of what is computed anyway.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..tracing import walk
from ..tracing.about import is_root
from ..tracing.nodes import is_size
from ..tracing.notes import ARITY, copied
from ..tracing.template import Template
from ..tracing.unit import Unit
from .access import is_chain
from .aligning import aligned
from .joining import join

_FREE = (operator.getitem, getattr)


@dataclass(eq=False)
class UnitCall:
    """A call of a unit in the program of another one."""

    caller: Template
    target: str
    owners: list[Unit]


def widen(root: nn.Module) -> None:
    """Changes templates in place of which modules can then share a class with others."""
    while _widen_one(root):
        pass


def by_kind(root: nn.Module) -> tuple[list[Unit], list[list[list[Unit]]]]:
    """All units with programs; and of each name that several programs have, those of each."""
    units = [m for m in walk.modules(root) if isinstance(m, Unit) and m.template is not None]
    by_name: dict[str, dict[int, list[Unit]]] = {}
    for unit in reversed(units):  # children first
        assert unit.template is not None
        if not is_root(unit) and not is_chain(unit):
            same = by_name.setdefault(unit.template.name, {})
            same.setdefault(id(unit.template), []).append(unit)
    return units, [list(groups.values()) for groups in by_name.values() if len(groups) > 1]


def _widen_one(root: nn.Module) -> bool:
    units, kinds = by_kind(root)
    return any(_widen_kind(groups, units) for groups in kinds)


def _widen_kind(groups: list[list[Unit]], units: list[Unit]) -> bool:
    """Widens those of one name that yield one value, if others yield more."""
    wide = [g for g in groups if _count(g[0]) > 1]
    narrow = [g for g in groups if _count(g[0]) == 1]
    for few in narrow:
        for many in wide:
            if _widen_to(few, many, units):
                return True
    return False


def _count(unit: Unit) -> int:
    assert unit.template is not None
    counts = {_yields(g) for g in unit.template.graphs}
    return counts.pop() if len(counts) == 1 else 0


def _yields(graph: fx.Graph) -> int:
    value = graph.output_node().args[0]
    if isinstance(value, fx.Node):
        return int(ARITY.get(value, 1))
    return len(value) if isinstance(value, tuple) else 0


def _widen_to(few: list[Unit], many: list[Unit], units: list[Unit]) -> bool:
    """Has units yield what others do, if they then can share a class; whether they do."""
    small, large = few[0].template, many[0].template
    assert small is not None
    assert large is not None
    if len(small.graphs) != len(large.graphs):
        return False
    made = small.clone()
    places = {_widened(g, h) for g, h in zip(made.graphs, large.graphs, strict=True)}
    place = places.pop() if len(places) == 1 else None
    if place is None or not _alike(made, large, few, many):
        return False
    calls = called_alone(few, units)
    if calls is None:
        return False
    for graph, target in replace_templates(calls, few, made, units):
        _reread(graph, target, place, _yields(large.graph))
    return True


def _alike(made: Template, large: Template, few: Sequence[Unit], many: Sequence[Unit]) -> bool:
    """Whether two programs can be one, either of them being the one that does more."""
    both = join(made, large, few, many) or join(large, made, many, few)
    return both is not None


def _widened(graph: fx.Graph, like: fx.Graph) -> int | None:
    """Has a program yield what another one does; which of these it yielded before."""
    output = graph.output_node()
    wanted: Any = like.output_node().args[0]
    value: Any = output.args[0]
    pair = {b: a for a, b in aligned(graph, like).items()}
    if isinstance(wanted, fx.Node):  # all that a call yields
        call = pair.get(wanted) or _call_like(graph, wanted)
        item = isinstance(value, fx.Node) and value.target is operator.getitem
        if call is None or not item or value.args[0] is not call:
            return None
        output.args = (call,)
        return int(value.args[1])
    places = [i for i, w in enumerate(wanted) if isinstance(w, fx.Node) and pair.get(w) is value]
    if len(places) != 1:
        return None
    copier = _Yielding(graph, pair)
    made = copier.structure(wanted)
    if copier.failed:
        return None
    output.args = (made,)
    return places[0]


def _call_like(graph: fx.Graph, wanted: fx.Node) -> fx.Node | None:
    found = [n for n in graph.nodes if n.op == "call_module" and n.target == wanted.target]
    return found[0] if len(found) == 1 else None


class _Yielding:
    """Finds in a program what another one yields; what is free is added."""

    def __init__(self, graph: fx.Graph, pair: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.pair = graph, pair
        self.failed = False

    def structure(self, value: Any) -> Any:
        """The same, made of nodes of this program."""
        return fx.node.map_arg(value, self._node)

    def _node(self, node: fx.Node) -> fx.Node:
        known = self.pair.get(node)
        if known is not None:
            return known
        free = node.target in _FREE or is_size(node)
        if not free or self.failed:
            self.failed = True
            return node
        args = [fx.node.map_arg(a, self._node) for a in node.args]
        if self.failed:
            return node
        with self.graph.inserting_before(self._place([a for a in args if isinstance(a, fx.Node)])):
            made = self.pair[node] = self.graph.create_node(node.op, node.target, tuple(args))
        copied(node, made)
        return made

    def _place(self, operands: list[fx.Node]) -> fx.Node:
        """Where an item stands: behind those that are there, as the source would read them."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        node = max(operands, key=order.__getitem__).next
        while node.target is operator.getitem or is_size(node):
            node = node.next
        return node


# -- the callers ----------------------------------------------------------------------------------


def called_alone(few: list[Unit], units: list[Unit]) -> list[UnitCall] | None:
    """The calls of some units, if none of them may be of others too."""
    calls = list(_calls(few, units))
    return calls if all(_can_read(call, few) for call in calls) else None


def replace_templates(
    calls: Sequence[UnitCall], few: Sequence[Unit], made: Template, units: Sequence[Unit]
) -> Iterator[tuple[fx.Graph, str]]:
    """Gives some units another program; the graphs that call them, copied, and by what name."""
    copies = {id(t): t.clone() for t in {id(c.caller): c.caller for c in calls}.values()}
    for unit in units:
        if unit.template is not None and id(unit.template) in copies:
            unit.__dict__["template"] = copies[id(unit.template)]
    for unit in few:
        unit.__dict__["template"] = made
    for call in calls:
        yield from ((graph, call.target) for graph in copies[id(call.caller)].graphs)


def _calls(few: list[Unit], units: list[Unit]) -> Iterator[UnitCall]:
    """Where some units are called, and by what programs."""
    ids = set(map(id, few))
    owners: dict[int, list[Unit]] = {}
    for unit in units:
        owners.setdefault(id(unit.template), []).append(unit)
    for same in owners.values():
        caller = same[0].template
        assert caller is not None
        nodes = (n for graph in caller.graphs for n in graph.nodes if n.op == "call_module")
        for target in dict.fromkeys(str(n.target) for n in nodes):
            if any(id(owner.get_submodule(target)) in ids for owner in same):
                yield UnitCall(caller, target, same)


def _can_read(call: UnitCall, few: list[Unit]) -> bool:
    """Whether all that the call means are such units, and it is read as a value of its own."""
    ids = set(map(id, few))
    if any(is_chain(owner) for owner in call.owners):
        return False
    return all(id(owner.get_submodule(call.target)) in ids for owner in call.owners)


def _reread(graph: fx.Graph, target: str, place: int, count: int) -> None:
    """Has a program read one item of what a call yields now."""
    for node in [n for n in graph.nodes if n.op == "call_module" and n.target == target]:
        with graph.inserting_after(node):
            item = graph.call_function(operator.getitem, (node, place))
        node.replace_all_uses_with(item, lambda user, item=item: user is not item)
        copied(node, item)
        ARITY.put(node, count)
