"""Puts a node, which holds one turn of a loop over tuples, in place of what the turns make."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from ...tracing.nodes import nodes_of
from ...tracing.notes import ARITY, HINT, LISTED, TAKEN_AS, VALUE, shared
from ...tracing.template import copy_graph, eliminate_dead_code
from ..alike import operands
from ..effects import has_effect, may_change
from ..names import plural
from ..results import is_starred
from .levels import Group, Path, Seed, groups
from .lockstep import Strand, leaves
from .rolls import Roll, item, spread
from .sweeps import Sweep
from .turning import Turn, hint_of, key_of, reads_item

TRIES = 50  # loops of one graph
_JOINING = frozenset({torch.cat, torch.stack})  # take a list as well as a tuple


def sweep_up(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """The graph with a node for each loop over tuples, which is only good for printing."""
    refused: set[Any] = set()
    for _ in range(TRIES):
        attempt = copy_graph(graph)
        found = (g for g in groups(attempt) if g.key not in refused and _can_fill(attempt, g))
        group = next(found, None)
        if group is None:
            break
        key = group.key
        if _fill(attempt, group, module):
            graph = attempt
        else:
            refused.add(key)
    return _starred(graph)


def _can_fill(graph: fx.Graph, group: Group) -> bool:
    """Whether a loop says more than it takes, and what its columns read stays meanwhile."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    own = {node for column in group.columns for node in column.nodes}
    places = [order[n] for n in (*own, *(s.reader for s in group.seeds))]
    places += [order[user] for node in own for user in node.users]
    between = list(order)[min(places) + 1 : max(places)]
    return group.is_worthwhile() and not any(map(may_change, between))


def _starred(graph: fx.Graph) -> fx.Graph:
    """Returns all items of a list as `*values`."""
    output = graph.output_node()
    values = output.args[0]
    if not isinstance(values, tuple):
        return graph
    found: list[Any] = []
    for value in values:
        found.append(value)
        owner = value.args[0] if isinstance(value, fx.Node) and value.args else None
        made = owner.target if isinstance(owner, fx.Node) else None
        if not isinstance(owner, fx.Node) or not ARITY.on(owner):
            continue
        if not (made is item or isinstance(made, Sweep) or is_starred(owner)):
            continue
        count = ARITY.of(owner)
        if [getattr(v, "args", None) for v in found[-count:]] == [(owner, i) for i in range(count)]:
            with graph.inserting_before(output):
                found[-count:] = [graph.call_function(spread, (owner,))]
    output.args = (tuple(found),)
    eliminate_dead_code(graph)
    return graph


def _fill(graph: fx.Graph, group: Group, module: nn.Module) -> bool:
    """Puts one node in place of all columns; whether what is drawn keeps its order."""
    order = [n for n in graph.nodes if has_effect(n) or isinstance(n.target, Roll)]
    _Filling(graph, group, module).fill()
    _sort(graph)
    eliminate_dead_code(graph)
    return order == [n for n in graph.nodes if has_effect(n) or isinstance(n.target, Roll)]


class _Filling:
    def __init__(self, graph: fx.Graph, group: Group, module: nn.Module) -> None:
        self.graph, self.group, self.module = graph, group, module
        self.inside = {node for column in group.columns for node in column.nodes}
        self.made: dict[Any, list[Seed]] = {}  # elements of lists, and where these are read
        self.elements: list[Any] = []
        for seed in group.seeds:
            self._add(seed.pattern, seed)
        self.needed = [c for c in group.columns if any(map(self._read_alone, c.nodes))]
        self.part = {c: self._part(c) for c in self.needed}
        for column, part in self.part.items():
            if part is None:
                self._add(column)

    def _part(self, column: Strand) -> tuple[Any, int] | None:
        """A list of tuples that has the column at some place, and that place."""
        for element in self.elements:
            if isinstance(element, tuple) and column in element:
                return element, element.index(column)
        return None

    def _add(self, pattern: Any, *seeds: Seed) -> None:
        if key_of(pattern) not in self.made:
            self.elements.append(pattern)
        self.made.setdefault(key_of(pattern), []).extend(seeds)

    def _read_alone(self, node: fx.Node) -> bool:
        """Whether something reads the value of one turn."""
        for user in node.users:
            if user in self.inside:
                continue
            lists = [s for s in self.group.seeds if s.reader is user]
            listed = sum(nodes_of(_at(user, s.path)).count(node) for s in lists)
            if operands(user).count(node) > listed:
                return True
        return False

    def fill(self) -> None:
        """Changes the graph, whose nodes are no longer in order then."""
        turn = Turn(self.module, self.group, self.elements)
        target = turn.sweep(whole=len(self.elements) == 1)
        with self.graph.inserting_before(self.graph.output_node()):
            node = self.graph.call_function(target, (turn.owners, turn.others))
            lists = [node] if target.element is not None else self._items(node)
        for made, element in zip(lists, self.elements, strict=True):
            ARITY.put(made, self.group.count)
            for seed in self.made[key_of(element)]:
                self._replace(seed, made)
            HINT.put(made, self._name(element))
            for column, part in self.part.items():
                if part is not None and part[0] is element:
                    self._read_off(column, made, len(element), part[1])
                elif column is element:
                    self._read_off(column, made)
        for each in reversed([n for n in self.graph.nodes if n in self.inside]):
            self.graph.erase_node(each)

    def _name(self, element: Any) -> str | None:
        """What a list is called: in the source, where it is handed to, or after what is in it."""
        for seed in self.made[key_of(element)]:
            names = TAKEN_AS.get(seed.reader)
            if names and seed.path[0] == 0:
                return str(names[seed.path[1]])
        columns = [leaf for leaf in leaves(element) if isinstance(leaf, Strand)]
        joined = [s.reader for s in self.made[key_of(element)] if s.reader.target in _JOINING]
        listed = (LISTED.get(n) for c in columns for n in c.nodes)
        name = next(filter(None, listed), None)
        if name is None and isinstance(element, Strand):
            hint = hint_of(element.nodes)
            name = plural(hint) if hint else None
        return name or next(filter(None, map(HINT.get, joined)), None)

    def _items(self, node: fx.Node) -> list[fx.Node]:
        ARITY.put(node, len(self.elements))
        return [
            self.graph.call_function(item, (node, number)) for number in range(len(self.elements))
        ]

    def _replace(self, seed: Seed, made: fx.Node) -> None:
        reader, old = seed.reader, _at(seed.reader, seed.path)
        new: Any = made
        if reader.op != "call_module":
            with self.graph.inserting_before(self.graph.output_node()):
                all_of_it = self.graph.call_function(spread, (made,))
            listed = isinstance(old, list) or reader.target in _JOINING
            new = [all_of_it] if listed else (all_of_it,)
        args, kwargs = _put((reader.args, dict(reader.kwargs)), seed.path, new)
        reader.args, reader.kwargs = args, kwargs

    def _item(self, made: fx.Node, number: int) -> fx.Node:
        known = (u for u in made.users if reads_item(u, made, number))
        return next(known, None) or self.graph.call_function(operator.getitem, (made, number))

    def _read_off(
        self, column: Strand, made: fx.Node, arity: int = 0, key: int | None = None
    ) -> None:
        """Has what reads the value of one turn read it off a list, or off a tuple in a list."""
        for number, node in enumerate(column.nodes):
            outside = [user for user in node.users if user not in self.inside]
            if not outside:
                continue
            with self.graph.inserting_before(self.graph.output_node()):
                read = self._item(made, number)
                if key is not None:
                    ARITY.put(read, arity)
                    read = self.graph.call_function(operator.getitem, (read, key))
                    shared(node, read, HINT)
            shared(node, read, VALUE, ARITY)
            for user in outside:
                user.replace_input_with(node, read)


def _at(node: fx.Node, path: Path) -> Any:
    value: Any = (node.args, node.kwargs)
    for key in path:
        value = value[key]
    return value


def _put(value: Any, path: Path, new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, dict):
        return {k: _put(v, path[1:], new) if k == path[0] else v for k, v in value.items()}
    return type(value)(_put(v, path[1:], new) if i == path[0] else v for i, v in enumerate(value))


def _sort(graph: fx.Graph) -> None:
    """Puts every node behind what it reads, else as they are."""
    order: dict[fx.Node, None] = {}
    for first in list(graph.nodes):
        stack = [first]
        while stack:
            node = stack[-1]
            waiting = [n for n in node.all_input_nodes if n not in order]
            if node in order or not waiting:
                order.setdefault(node)
                stack.pop()
            else:
                stack += reversed(waiting)
    output = graph.output_node()
    order.pop(output)
    for node in order:
        output.prepend(node)
