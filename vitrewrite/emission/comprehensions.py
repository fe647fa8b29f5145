"""Returned lists whose items are made alike of the items of tuples.

They are printed as `[f(a, b) for a, b in zip(first[:9], second[:9])]`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..tracing.notes import ARITY, CALLEE, HINT, ORIGIN
from ..tracing.template import copy_graph
from .alike import numbered_call, operands, shape
from .effects import has_effect, may_change
from .expressions import ATOM, CALL, Text, render, structure
from .loops.rolls import spread
from .loops.runs import Loop
from .names import plural

LEAST = 3  # items; fewer are no shorter as a comprehension


@dataclass(eq=False)
class Comprehension:
    """What is made for each item; the target of a node that is printed, not run.

    The node's arguments are two tuples: the tuples that the items are of, and other values.

    Attributes:
        graph: its inputs are an item of each tuple, then the other values; its output what is made.
        slices: for each tuple, the part of it that is gone through.
        hints: for each tuple, what its items are called.
        layers: the calls in `graph` of a child of a list that is gone through beside the tuples;
            the list, and what its children are called.
    """

    graph: fx.Graph
    slices: tuple[str, ...]
    hints: tuple[str | None, ...]
    layers: tuple[tuple[fx.Node, str, str], ...] = ()
    __name__ = "comprehension"

    def __call__(self, *_: Any) -> Any:
        """Never called: a graph with comprehensions is printed, not run."""
        raise NotImplementedError

    def text(self, node: fx.Node, of: Callable[[Any], Text], free: Callable[[str], str]) -> Text:
        """The list for `node`, given the texts of its arguments and how names are made free."""
        tuples, others = (list(map(of, values)) for values in node.args)  # type: ignore[arg-type]
        called = [free(variable) for _, _, variable in self.layers]
        for (call, _, _), name in zip(self.layers, called, strict=True):
            CALLEE.put(call, name)
        names = [free(hint or "y") for hint in self.hints]
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        texts = dict(zip(inputs, [*map(Text, names), *others], strict=True))

        def inside(value: Any) -> Text:
            return structure(value, lambda n: texts[n] if n in texts else render(n, inside))

        element = inside(self.graph.output_node().args[0]).code
        parts = [over for _, over, _ in self.layers]
        parts += [t.within(CALL) + s for t, s in zip(tuples, self.slices, strict=True)]
        over = parts[0] if len(parts) == 1 else f"zip({', '.join(parts)})"
        return Text(f"[{element} for {', '.join([*called, *names])} in {over}]", ATOM)


def comprehend(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """The graph with a node for each such list, which is only good for printing."""
    if not _has_rows(graph.output_node().args[0]):
        return graph
    copy = copy_graph(graph)
    output = copy.output_node()
    written = _Lists(copy, module)
    output.args = (written.walk(output.args[0]),)
    if not written.done:
        return graph
    for alike in written.done:
        for node in alike.read:
            if not node.users:
                copy.erase_node(node)
    return copy


def _has_rows(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) >= LEAST or any(map(_has_rows, value))
    return isinstance(value, dict) and any(map(_has_rows, value.values()))


class _Lists:
    """Goes through what a graph returns."""

    def __init__(self, graph: fx.Graph, module: nn.Module) -> None:
        self.graph, self.module = graph, module
        self.done: list[_Alike] = []
        changes = [i for i, n in enumerate(graph.nodes) if may_change(n)]
        self.settled = {*list(graph.nodes)[max(changes, default=-1) + 1 :]}

    def walk(self, value: Any) -> Any:
        """The value with a node in place of items that are made alike."""
        if isinstance(value, dict):
            return {k: self.walk(v) for k, v in value.items()}
        if not isinstance(value, (tuple, list)):
            return value
        items: list[Any] = []
        at = 0
        while at < len(value):
            alike = self._alike(value[at:]) if at < 2 else None
            if alike is None:
                items.append(self.walk(value[at]))
                at += 1
            else:
                items.append(alike.write(self.graph))
                at += alike.count
                self.done.append(alike)
        return type(value)(items)

    def _alike(self, values: Sequence[Any]) -> _Alike | None:
        """The longest beginning of `values` that is made alike, the last one excepted at most."""
        lengths = [n for n in (len(values), len(values) - 1) if n >= LEAST]
        found = (_Alike(self.module, values[:n], self.settled) for n in lengths)
        return next((alike for alike in found if alike.found), None)


class _Alike:
    """Values that are walked against the flow in lockstep, as far as items of tuples."""

    def __init__(self, module: nn.Module, values: Sequence[Any], settled: set[fx.Node]) -> None:
        self.module, self.values, self.count = module, values, len(values)
        self.settled = settled  # nodes after which nothing is changed in place
        self.items: dict[tuple[fx.Node, int], Sequence[fx.Node]] = {}
        self.hints: dict[tuple[fx.Node, int], str] = {}
        self.others: dict[fx.Node, None] = {}
        self.made: dict[fx.Node, Sequence[fx.Node]] = {}
        self.layers: dict[fx.Node, Loop] = {}
        alike = self._same(values, "")
        self.found = alike and bool(self.items) and (bool(self.made) or not _is_node(values[0]))

    def _same(self, values: Sequence[Any], key: str) -> bool:
        first = values[0]
        if any(type(v) is not type(first) for v in values):
            return False
        if isinstance(first, fx.Node):
            return self._same_nodes(values, key)
        if isinstance(first, dict):
            keys = all(list(v) == list(first) for v in values)
            return keys and all(self._same([v[k] for v in values], str(k)) for k in first)
        if isinstance(first, (tuple, list)):
            lengths = {len(v) for v in values}
            return len(lengths) == 1 and all(
                self._same(each, "") for each in zip(*values, strict=True)
            )
        return all(v == first for v in values)

    def _same_nodes(self, values: Sequence[fx.Node], key: str) -> bool:
        first = values[0]
        if len(set(values)) == 1:
            self.others.setdefault(first)
            return True
        if len(set(values)) < len(values) or first in self.made:
            return False
        if self._are_items(values):
            place = first.args[0], first.args[1]
            self.items.setdefault(place, values)  # type: ignore[arg-type]
            hint = next(filter(None, (HINT.get(v) for v in values)), key)
            self.hints.setdefault(place, hint.rstrip("0123456789"))  # type: ignore[arg-type]
            return True
        if len(set(map(shape, values))) > 1 or not all(map(self._is_inside, values)):
            return False
        if len({v.target for v in values}) > 1 and not self._are_a_list(values):
            return False
        self.made[first] = values
        return all(self._same(each, "") for each in zip(*map(operands, values), strict=True))

    def _are_a_list(self, values: Sequence[fx.Node]) -> bool:
        """Whether values are made by the children of a list, in a row."""
        places = [numbered_call(v) for v in values]
        if places[0] is None:
            return False
        container, start = places[0]
        if places != [(container, start + i) for i in range(len(places))]:
            return False
        self.layers[values[0]] = Loop(container, start, tuple(values))
        return True

    def _are_items(self, values: Sequence[fx.Node]) -> bool:
        """Whether values are items, in a row, of one tuple."""
        if any(v.target is not operator.getitem for v in values):
            return False
        (owner, start), *rest = [v.args for v in values]
        if not isinstance(owner, fx.Node) or not ARITY.on(owner):
            return False
        return isinstance(start, int) and all(
            args == (owner, start + i) for i, args in enumerate(rest, 1)
        )

    def _is_inside(self, node: fx.Node) -> bool:
        """Whether a node may be written inside the list: nothing else needs it."""
        plain = node.op not in ("placeholder", "get_attr") and not ARITY.on(node)
        mentioned = [o for user in node.users for o in operands(user)].count(node)
        alone = mentioned == 1 and not ORIGIN.get(node)
        return plain and alone and node in self.settled and not has_effect(node)

    def write(self, graph: fx.Graph) -> fx.Node:
        """Adds the node for the list; what stands for its items."""
        inner = fx.Graph()
        known = {values[0]: inner.placeholder("item") for values in self.items.values()}
        known |= {node: inner.placeholder("other") for node in self.others}
        order = {node: i for i, node in enumerate(graph.nodes)}
        for node in sorted(self.made, key=order.__getitem__):
            known[node] = inner.node_copy(node, known.__getitem__)
        inner.output(fx.node.map_arg(self.values[0], known.__getitem__))
        for owner, start in self.items:
            HINT.put(owner, HINT.get(owner) or plural(self.hints[owner, start]))
        slices = tuple(self._slice(ARITY.of(owner), start) for owner, start in self.items)
        layers = [(known[n], v.slice(self.module), v.variable) for n, v in self.layers.items()]
        hints = tuple(self.hints[place] for place in self.items)
        target = Comprehension(inner, slices, hints, tuple(layers))
        with graph.inserting_before(graph.output_node()):
            owners = tuple(owner for owner, _ in self.items)
            node = graph.call_function(target, (owners, tuple(self.others)))
            return graph.call_function(spread, (node,))

    def _slice(self, arity: int, start: int) -> str:
        stop = start + self.count
        if self.count == arity:
            return ""
        return f"[{start or ''}:{'' if stop == arity else stop}]"

    @property
    def read(self) -> list[fx.Node]:
        """What the list is made of, readers first."""
        columns = (*self.made.values(), *self.items.values())
        return [node for column in columns for node in column]


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)
