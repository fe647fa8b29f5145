"""One turn of a loop over tuples as a graph, in the making."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import fx, nn

from ...tracing.nodes import is_size, nodes_of, operand
from ...tracing.notes import ARITY, ASSIGNED, HINT, VALUE, copied
from ..access import access, child_of
from ..alike import operands
from ..expressions import CALL, Text, render, structure
from ..packs import PAIR
from .levels import Group
from .lockstep import Children, Inner, Items, Loose, Strand, Turned, is_leaf, leaves
from .sweeps import Over, Sweep

MAX_LENGTH = 76  # characters of what a comprehension makes


class Turn:
    """One turn as a graph, in the making."""

    def __init__(self, module: nn.Module, group: Group, elements: list[Any]) -> None:
        self.module, self.group, self.elements = module, group, elements
        self.graph = fx.Graph()
        self.known: dict[Any, Any] = {}  # what is read, by the key of its pattern
        self.items: set[fx.Node] = set()  # nodes that read what is in an item
        self.over: list[Over] = []
        self.calls: dict[Children, list[fx.Node]] = {}
        self.first: int | None = None
        reads = [leaf for leaf in group.reads() if not isinstance(leaf, Strand)]
        inner = list({key_of(leaf): leaf for leaf in reads if isinstance(leaf, Inner)}.values())
        gone = [leaf for leaf in reads if isinstance(leaf, (Items, Loose))]
        gone += [leaf.items for leaf in inner]
        gone = list({key_of(leaf): leaf for leaf in gone}.values())
        for leaf in gone:
            self._input(leaf)
        index = next((leaf for leaf in reads if isinstance(leaf, Turned)), None)
        if index is not None:
            self.first = index.start
            self.known[key_of(index)] = self.graph.placeholder("index")
            VALUE.put(self.known[key_of(index)], 1)
        others = dict.fromkeys(leaf for leaf in reads if isinstance(leaf, fx.Node))
        for node in others:
            self.known[key_of(node)] = self.graph.placeholder("other")
            copied(node, self.known[key_of(node)])
        for each in inner:
            self._read(each)
        self.owners = tuple(x.owner if isinstance(x, Items) else x.nodes for x in gone)
        self.others = tuple(others)

    def _input(self, leaf: Items | Loose) -> None:
        node = self.known[key_of(leaf)] = self.graph.placeholder("each")
        copied(leaf.nodes[0], node)
        part, hint = "", hint_of(leaf.nodes)
        if isinstance(leaf, Items):
            part = _part(ARITY.of(leaf.owner), leaf.start, leaf.step, self.group.count)
            whole = HINT.get(leaf.owner)
            hint = _singular(whole) if hint in (None, whole) else hint
        ASSIGNED.put(node, True)
        self.over.append(Over(part, hint))

    def _read(self, leaf: Inner) -> None:
        """Reads what is in an item off it."""
        key: Any = (Items, leaf.items.nodes)
        node = self.known[key_of(leaf.items)]
        owners = leaf.items.nodes
        for number in leaf.keys:
            key = (key, number)
            owner = node
            node = self.known.get(key)
            inside = next(u for u in owners[0].users if reads_item(u, owners[0], number))
            if node is None:
                node = self.known[key] = self.graph.call_function(operator.getitem, (owner, number))
                self.items.add(node)
                copied(inside, node)
            owners = (inside,)
        self.known[key_of(leaf)] = node

    def sweep(self, *, whole: bool) -> Sweep:
        """The loop; if it makes one whole list, as a comprehension where that is short."""
        for column in _in_order(self.group.columns):
            self._make(column)
        for element in self.elements:
            self._name_sizes(element)
        children = [self._children(each, calls) for each, calls in self.calls.items()]
        values = [self._built(each) for each in self.elements]
        names = (tuple(children), tuple(self.over))
        lists = len(values)
        if whole and self._is_short(values[0]):
            self.graph.output(values[0])
            return Sweep(
                self.graph, (*names[0], *names[1]), self.group.count, self.first, 1, values[0]
            )
        filled = [self.graph.placeholder(f"list_{i}") for i in range(lists)]
        self._inputs_first()
        for made, value in zip(filled, values, strict=True):
            self.graph.call_method("append", (made, value))
        self.graph.output(())
        return Sweep(self.graph, (*names[0], *names[1]), self.group.count, self.first, lists)

    def _name_sizes(self, element: Any) -> None:
        """Two sizes of one tensor that are put together are its height and width."""
        columns = [c for c in element if isinstance(c, Strand)] if type(element) is tuple else []
        made = [self.known[key_of(c)] for c in columns]
        if len(made) == len(PAIR) == len(element) and all(map(is_size, made)):
            for column, node, name in zip(columns, made, PAIR, strict=True):
                if not HINT.get(node):
                    for each in (node, *column.nodes):
                        HINT.put(each, name)

    def _inputs_first(self) -> None:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        first = next(iter(self.graph.nodes))
        for node in reversed(inputs):
            if node is not first:
                first.prepend(node)
                first = node
        for before, node in pairwise(inputs):
            before.append(node)

    def _make(self, column: Strand) -> None:
        first = column.nodes[0]
        args, kwargs = self._built(column.arguments), self._built(column.keywords)
        node = self.graph.create_node(first.op, first.target, args, kwargs)
        copied(first, node)
        if (hint := hint_of(column.nodes)) is not None:
            HINT.put(node, hint)
        self.known[key_of(column)] = node
        if column.children is not None:
            self.calls.setdefault(column.children, []).append(node)

    def _built(self, pattern: Any) -> Any:
        return _mapped(pattern, lambda leaf: self.known[key_of(leaf)])

    def _children(self, children: Children, calls: list[fx.Node]) -> Over:
        """What is gone through to call another child in each turn."""
        if children.container is None:
            texts = [access(self.module, target) for target in children.targets]
            return Over(f"({', '.join(texts)})", _stem(children.targets), tuple(calls))
        owner = access(self.module, children.container)
        length = len(child_of(self.module, children.container)._modules)
        part = _part(length, children.start, children.step, self.group.count)
        name = children.container.rpartition(".")[2]
        hint = name[:-1] if name.endswith("s") and len(name) > 3 else "layer"
        return Over(f"{owner}{part}", hint, tuple(calls))

    def _is_short(self, element: Any) -> bool:
        """Whether it can be written in a comprehension."""
        uses: list[fx.Node] = nodes_of(element)
        for node in self.graph.nodes:
            uses += operands(node)
        inner = [n for n in self.graph.nodes if n.op != "placeholder" and n not in self.items]
        if any(ARITY.on(n) or uses.count(n) > 1 for n in inner):
            return False
        named = [n for n in inner if HINT.get(n) and n not in nodes_of(element)]
        text = element_text(element, lambda n: Text("value") if n.op == "placeholder" else None)
        return len(text) <= MAX_LENGTH and not named


def element_text(element: Any, name: Callable[[fx.Node], Text | None]) -> str:
    """What a comprehension makes, given the names of what is not written out."""

    def of(value: Any) -> Text:
        return structure(value, inside)

    def inside(node: fx.Node) -> Text:
        if (known := name(node)) is not None:
            return known
        if is_size(node):
            return Text(f"{inside(operand(node)).within(CALL)}.shape[{node.args[1]}]", CALL)
        return render(node, of)

    return of(element).code


def reads_item(user: fx.Node, owner: fx.Node, number: int) -> bool:
    """Whether a node is the item of a tuple that has a number."""
    return user.target is operator.getitem and user.args == (owner, number)


def key_of(pattern: Any) -> Any:
    """Equal for patterns of the same values."""
    if isinstance(pattern, (Items, Inner, Loose)):
        return type(pattern), pattern.nodes
    if isinstance(pattern, Turned):
        return Turned
    if isinstance(pattern, (Strand, fx.Node)):
        return id(pattern)
    return repr(_mapped(pattern, lambda leaf: key_of(leaf)))


def _mapped(pattern: Any, function: Callable[[Any], Any]) -> Any:
    if is_leaf(pattern):
        return function(pattern)
    if isinstance(pattern, tuple):
        return tuple(_mapped(p, function) for p in pattern)
    if isinstance(pattern, list):
        return [_mapped(p, function) for p in pattern]
    if isinstance(pattern, dict):
        return {k: _mapped(p, function) for k, p in pattern.items()}
    if isinstance(pattern, slice):
        parts = (pattern.start, pattern.stop, pattern.step)
        return slice(*(_mapped(p, function) for p in parts))
    return pattern


def _in_order(columns: list[Strand]) -> list[Strand]:
    """Columns after those that they read."""
    order: dict[int, Strand] = {}

    def place(column: Strand) -> None:
        if id(column) in order:
            return
        for leaf in leaves((column.arguments, column.keywords)):
            if isinstance(leaf, Strand):
                place(leaf)
        order[id(column)] = column

    graph = columns[0].nodes[0].graph if columns else None
    number = {n: i for i, n in enumerate(graph.nodes)} if graph is not None else {}
    for column in sorted(columns, key=lambda c: number[c.nodes[0]]):
        place(column)
    return list(order.values())


def hint_of(nodes: tuple[fx.Node, ...]) -> str | None:
    """What values are called, without their number."""
    found = (HINT.get(n) for n in nodes)
    plain = (h for h in found if h and not re.fullmatch(r"_|size\d+", h))
    hint = next((h.rstrip("0123456789") for h in plain), None)
    return hint.rstrip("_") or None if hint else None


def _singular(name: str | None) -> str | None:
    if not name:
        return None
    stem = name.removesuffix("_list")
    return stem[:-1] if stem.endswith("s") and len(stem) > 3 else stem if stem != name else None


def _stem(targets: tuple[str, ...]) -> str:
    """What children of several names are called."""
    names = [target.rpartition(".")[2] for target in targets]
    alike = "".join(a for a, *rest in zip(*names, strict=False) if all(a == b for b in rest))
    return alike.strip("_0123456789") or "layer"


def _part(length: int, start: int, step: int, count: int) -> str:
    """The part of a tuple that is gone through, as it is written behind it."""
    stop = start + step * count
    if (start, stop, step) == (0, length, 1):
        return ""
    if step > 0:
        return f"[{start or ''}:{'' if stop == length else stop}]"
    return f"[{'' if start == length - 1 else start}:{'' if stop < 0 else stop}:-1]"
