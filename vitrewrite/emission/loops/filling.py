"""Puts a node, which holds one turn of a loop over tuples, in place of what the turns make."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from ...tracing.nodes import is_size, operand
from ...tracing.notes import ARITY, ASSIGNED, HINT, LISTED, TAKEN_AS, VALUE, copied, shared
from ...tracing.template import copy_graph, eliminate_dead_code
from ..access import access, child_of
from ..alike import operands
from ..effects import has_effect, may_change
from ..expressions import CALL, Text, render, structure
from ..names import plural
from ..packs import PAIR
from .levels import Group, Path, Seed, groups
from .lockstep import Children, Column, Index, Inner, Items, Loose, is_leaf, leaves
from .rolls import Roll, item, spread
from .sweeps import Over, Sweep

TRIES = 50  # loops of one graph
MAX_LENGTH = 76  # characters of what a comprehension makes
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
        if not (made is item or isinstance(made, Sweep)):
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

    def _part(self, column: Column) -> tuple[Any, int] | None:
        """A list of tuples that has the column at some place, and that place."""
        for element in self.elements:
            if isinstance(element, tuple) and column in element:
                return element, element.index(column)
        return None

    def _add(self, pattern: Any, *seeds: Seed) -> None:
        if _key(pattern) not in self.made:
            self.elements.append(pattern)
        self.made.setdefault(_key(pattern), []).extend(seeds)

    def _read_alone(self, node: fx.Node) -> bool:
        """Whether something reads the value of one turn."""
        for user in node.users:
            if user in self.inside:
                continue
            lists = [s for s in self.group.seeds if s.reader is user]
            listed = sum(_nodes(_at(user, s.path)).count(node) for s in lists)
            if operands(user).count(node) > listed:
                return True
        return False

    def fill(self) -> None:
        """Changes the graph, whose nodes are no longer in order then."""
        turn = _Turn(self.module, self.group, self.elements)
        target = turn.sweep(whole=len(self.elements) == 1)
        with self.graph.inserting_before(self.graph.output_node()):
            node = self.graph.call_function(target, (turn.owners, turn.others))
            lists = [node] if target.element is not None else self._items(node)
        for made, element in zip(lists, self.elements, strict=True):
            ARITY.put(made, self.group.count)
            for seed in self.made[_key(element)]:
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
        for seed in self.made[_key(element)]:
            names = TAKEN_AS.get(seed.reader)
            if names and seed.path[0] == 0:
                return str(names[seed.path[1]])
        columns = [leaf for leaf in leaves(element) if isinstance(leaf, Column)]
        joined = [s.reader for s in self.made[_key(element)] if s.reader.target in _JOINING]
        listed = (LISTED.get(n) for c in columns for n in c.nodes)
        name = next(filter(None, listed), None)
        if name is None and isinstance(element, Column):
            hint = _hint(element.nodes)
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
        known = (u for u in made.users if _reads(u, made, number))
        return next(known, None) or self.graph.call_function(operator.getitem, (made, number))

    def _read_off(
        self, column: Column, made: fx.Node, arity: int = 0, key: int | None = None
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


class _Turn:
    """One turn as a graph, in the making."""

    def __init__(self, module: nn.Module, group: Group, elements: list[Any]) -> None:
        self.module, self.group, self.elements = module, group, elements
        self.graph = fx.Graph()
        self.known: dict[Any, Any] = {}  # what is read, by the key of its pattern
        self.items: set[fx.Node] = set()  # nodes that read what is in an item
        self.over: list[Over] = []
        self.calls: dict[Children, list[fx.Node]] = {}
        self.first: int | None = None
        reads = [leaf for leaf in group.reads() if not isinstance(leaf, Column)]
        inner = list({_key(leaf): leaf for leaf in reads if isinstance(leaf, Inner)}.values())
        gone = [leaf for leaf in reads if isinstance(leaf, (Items, Loose))]
        gone += [leaf.items for leaf in inner]
        gone = list({_key(leaf): leaf for leaf in gone}.values())
        for leaf in gone:
            self._input(leaf)
        index = next((leaf for leaf in reads if isinstance(leaf, Index)), None)
        if index is not None:
            self.first = index.start
            self.known[_key(index)] = self.graph.placeholder("index")
            VALUE.put(self.known[_key(index)], 1)
        others = dict.fromkeys(leaf for leaf in reads if isinstance(leaf, fx.Node))
        for node in others:
            self.known[_key(node)] = self.graph.placeholder("other")
            copied(node, self.known[_key(node)])
        for each in inner:
            self._read(each)
        self.owners = tuple(x.owner if isinstance(x, Items) else x.nodes for x in gone)
        self.others = tuple(others)

    def _input(self, leaf: Items | Loose) -> None:
        node = self.known[_key(leaf)] = self.graph.placeholder("each")
        copied(leaf.nodes[0], node)
        part, hint = "", _hint(leaf.nodes)
        if isinstance(leaf, Items):
            part = _part(ARITY.of(leaf.owner), leaf.start, leaf.step, self.group.count)
            whole = HINT.get(leaf.owner)
            hint = _singular(whole) if hint in (None, whole) else hint
        ASSIGNED.put(node, True)
        self.over.append(Over(part, hint))

    def _read(self, leaf: Inner) -> None:
        """Reads what is in an item off it."""
        key: Any = (Items, leaf.items.nodes)
        node = self.known[_key(leaf.items)]
        owners = leaf.items.nodes
        for number in leaf.keys:
            key = (key, number)
            owner = node
            node = self.known.get(key)
            inside = next(u for u in owners[0].users if _reads(u, owners[0], number))
            if node is None:
                node = self.known[key] = self.graph.call_function(operator.getitem, (owner, number))
                self.items.add(node)
                copied(inside, node)
            owners = (inside,)
        self.known[_key(leaf)] = node

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
        columns = [c for c in element if isinstance(c, Column)] if type(element) is tuple else []
        made = [self.known[_key(c)] for c in columns]
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

    def _make(self, column: Column) -> None:
        first = column.nodes[0]
        args, kwargs = self._built(column.arguments), self._built(column.keywords)
        node = self.graph.create_node(first.op, first.target, args, kwargs)
        copied(first, node)
        if (hint := _hint(column.nodes)) is not None:
            HINT.put(node, hint)
        self.known[_key(column)] = node
        if column.children is not None:
            self.calls.setdefault(column.children, []).append(node)

    def _built(self, pattern: Any) -> Any:
        return _mapped(pattern, lambda leaf: self.known[_key(leaf)])

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
        uses: list[fx.Node] = _nodes(element)
        for node in self.graph.nodes:
            uses += operands(node)
        inner = [n for n in self.graph.nodes if n.op != "placeholder" and n not in self.items]
        if any(ARITY.on(n) or uses.count(n) > 1 for n in inner):
            return False
        named = [n for n in inner if HINT.get(n) and n not in _nodes(element)]
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


def _reads(user: fx.Node, owner: fx.Node, number: int) -> bool:
    return user.target is operator.getitem and user.args == (owner, number)


def _key(pattern: Any) -> Any:
    if isinstance(pattern, (Items, Inner, Loose)):
        return type(pattern), pattern.nodes
    if isinstance(pattern, Index):
        return Index
    if isinstance(pattern, (Column, fx.Node)):
        return id(pattern)
    return repr(_mapped(pattern, lambda leaf: _key(leaf)))


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


def _in_order(columns: list[Column]) -> list[Column]:
    """Columns after those that they read."""
    order: dict[int, Column] = {}

    def place(column: Column) -> None:
        if id(column) in order:
            return
        for leaf in leaves((column.arguments, column.keywords)):
            if isinstance(leaf, Column):
                place(leaf)
        order[id(column)] = column

    graph = columns[0].nodes[0].graph if columns else None
    number = {n: i for i, n in enumerate(graph.nodes)} if graph is not None else {}
    for column in sorted(columns, key=lambda c: number[c.nodes[0]]):
        place(column)
    return list(order.values())


def _hint(nodes: tuple[fx.Node, ...]) -> str | None:
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


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


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
