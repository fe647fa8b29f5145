"""Loops whose turns do more than call a layer: several values go from turn to turn.

The calls `layers.0`, `layers.1`, ... are grown, against the flow, to whole turns: what differs only
by turn belongs to the loop. Values from outside that alternate become `values[i % 3]`; values that
are read from every turn are collected in lists. All turns become one node that holds one turn.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from ..tracing.template import copy_graph
from .effects import has_effect
from .loops import find_loops, numbered_call
from .rolls import Roll, item, spread

LEAST = 3  # turns; fewer are no shorter as a loop


def roll_up(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """The graph with one node for all turns of each such loop, which is only good for printing."""
    simple = {n for loop in find_loops(graph) for n in loop.nodes}
    for names in [[n.name for n in r] for r in _runs(graph) if not simple.intersection(r)]:
        attempt = copy_graph(graph)
        by_name = {n.name: n for n in attempt.nodes}
        anchors = [by_name[name] for name in names]
        _take_apart(attempt, anchors)
        turns = _Turns(attempt, anchors)
        if turns.grow() and turns.fits(module):
            turns.replace()
            graph = attempt
    return graph


def _take_apart(graph: fx.Graph, calls: list[fx.Node]) -> None:
    """Lets a returned tuple of a call be a tuple of its items, as they are of the other calls."""
    output = graph.output_node()
    found = [n for n in output.all_input_nodes if "arity" in n.meta]
    for node in found:
        owner = node
        while owner.target is operator.getitem and isinstance(owner.args[0], fx.Node):
            owner = owner.args[0]
        if owner in calls:
            with graph.inserting_after(node):
                items = [
                    graph.call_function(operator.getitem, (node, i))
                    for i in reversed(range(node.meta["arity"]))
                ]
            output.args = (_put(output.args[0], node, tuple(reversed(items))),)


def _put(value: Any, old: fx.Node, new: Any) -> Any:
    if value is old:
        return new
    if isinstance(value, (tuple, list)):
        return type(value)(_put(v, old, new) for v in value)
    return {k: _put(v, old, new) for k, v in value.items()} if isinstance(value, dict) else value


def _runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Calls of consecutive children of one container, each called once."""
    calls: dict[str, dict[int, list[fx.Node]]] = {}
    for node in graph.nodes:
        found = numbered_call(node)
        if found is not None:
            calls.setdefault(found[0], {}).setdefault(found[1], []).append(node)
    runs = []
    for children in calls.values():
        numbers = list(children)
        consecutive = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if consecutive and len(numbers) >= LEAST and all(len(n) == 1 for n in children.values()):
            runs.append([nodes[0] for nodes in children.values()])
    return runs


@dataclass
class _Turns:
    """The columns of a loop: a node per turn, alike but for what they read."""

    graph: fx.Graph
    anchors: list[fx.Node]
    columns: list[list[fx.Node]] = field(default_factory=list)
    where: dict[fx.Node, tuple[int, int]] = field(default_factory=dict)
    carried: dict[int, fx.Node] = field(default_factory=dict)  # column -> its value before
    fixed: dict[fx.Node, None] = field(default_factory=dict)
    cycles: dict[tuple[fx.Node, ...], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order: dict[fx.Node, float] = {n: i for i, n in enumerate(self.graph.nodes)}
        self._add(self.anchors)
        while "arity" in self.anchors[0].meta and self._add_readers():
            pass  # the items of what a child returns

    def _add(self, column: list[fx.Node]) -> None:
        for turn, node in enumerate(column):
            self.where[node] = len(self.columns), turn
        self.columns.append(column)

    # -- growing --------------------------------------------------------------------------------

    def grow(self) -> bool:
        """Adds columns until all that they read is told apart; whether that went well."""
        done = 0
        while done < len(self.columns):
            column = self.columns[done]
            shapes = [_shape(n, skip_target=done == 0) for n in column]
            if any(shape != shapes[0] for shape in shapes):
                return False
            if not all(map(self._place, zip(*map(_operands, column), strict=True))):
                return False
            done += 1
            if done == len(self.columns):
                self._add_readers()
        read = {*self.fixed, *self.carried.values(), *(v for c in self.cycles for v in c)}
        return not read.intersection(self.where)

    def _add_readers(self) -> bool:
        """Adds a column of what is made from a value of each turn alone; whether there was one."""
        for column in list(self.columns):
            for first in column[0].users:
                shape = _shape(first)
                alike = [
                    [u for u in node.users if _shape(u) == shape and _operands(u) == [node]]
                    for node in column
                ]
                found = [users[0] for users in alike if len(users) == 1]
                if len(found) == len(column) and first.op != "output" and first not in self.where:
                    self._add(found)
                    return True
        return False

    def _place(self, values: tuple[fx.Node, ...]) -> bool:
        known = [self.where.get(v) for v in values]
        if all(v is values[0] for v in values):
            self.fixed.setdefault(values[0])
            return known[0] is None
        if None not in known:
            return known == [(known[0][0], turn) for turn in range(len(values))]  # type: ignore[index]
        if known[0] is None and known[1] is not None:
            column = known[1][0]
            if known[1:] != [(column, turn) for turn in range(len(values) - 1)]:
                return False
            return self.carried.setdefault(column, values[0]) is values[0]
        if any(k is not None for k in known):
            return False
        if self._is_column(values):
            self._add(list(values))
        elif self._is_made_before(values):
            last = self._last_like(values[1])
            if last is None:
                return False
            self.carried[len(self.columns)] = values[0]
            self._add([*values[1:], last])
        else:
            self.cycles.setdefault(values)
        return True

    def _is_made_before(self, values: tuple[fx.Node, ...]) -> bool:
        """Whether each turn but the first reads what the one before it made."""
        later = values[1:]
        if len(set(later)) < len(later) or len({_shape(v) for v in later}) > 1:
            return False
        after = zip(later, self.anchors, strict=False)
        return all(self.order[v] > self.order[a] for v, a in after)

    def _last_like(self, node: fx.Node) -> fx.Node | None:
        """What the last turn makes as the first one makes `node`."""
        operands: list[fx.Node] = []
        for operand in _operands(node):
            column, turn = self.where.get(operand, (-1, 0))
            if turn != 0:
                return None
            last = self.columns[column][-1] if column >= 0 else self._last_like(operand)
            if last is None:
                return None
            operands.append(last)
        if not operands:
            return node if node.op == "get_attr" else None
        for user in operands[0].users:
            if _shape(user) == _shape(node) and _operands(user) == operands:
                return user
        return self._unread_item(node, operands[0])

    def _unread_item(self, node: fx.Node, call: fx.Node) -> fx.Node | None:
        """An item that the last turn gives and nobody reads."""
        if node.target is not operator.getitem:
            return None
        with self.graph.inserting_after(call):
            item = self.graph.call_function(operator.getitem, (call, node.args[1]))
        item.meta = dict(node.meta)
        self.order[item] = self.order[call] + 0.5
        return item

    def _is_column(self, values: tuple[fx.Node, ...]) -> bool:
        """Whether values are made turn by turn, rather than before the loop."""
        if len(set(values)) < len(values) or len({_shape(v) for v in values}) > 1:
            return False
        if values[0].op in ("placeholder", "get_attr"):
            return False
        before = zip(values[1:], self.anchors, strict=False)
        return all(self.order[v] > self.order[a] for v, a in before)

    # -- checking -------------------------------------------------------------------------------

    def fits(self, module: nn.Module) -> bool:
        """Whether nothing else happens in between, and what is read afterwards can be given."""
        inputs = [*self.fixed, *(cycle[1] for cycle in self.cycles)]
        if len(set(inputs)) < len(inputs):
            return False  # one value, used in two ways
        inside = [self.order[n] for n in self.where]
        between = [
            n
            for n, i in self.order.items()
            if min(inside) < i < max(inside) and n not in self.where
        ]
        if any(has_effect(n, module) for n in between):
            return False
        for node in self.where:
            for user in node.users:
                if user not in self.where and self.order[user] < max(inside):
                    return False
        left: list[fx.Node] = []
        for user in self._readers():
            fx.node.map_arg(self._rewritten(user, lambda c: None), left.append)
        last = len(self.anchors) - 1
        if any("arity" in n.meta for n in left if n in self.where):
            return False  # a tuple that is passed on as a whole
        return all(n not in self.where or self.where[n][1] == last for n in left)

    def _readers(self) -> list[fx.Node]:
        found = {u: None for n in self.where for u in n.users if u not in self.where}
        return sorted(found, key=lambda n: self.order[n])

    def _rewritten(self, user: fx.Node, whole: Callable[[int], Any]) -> Any:
        """The arguments of a reader, with `whole(column)` for all turns of a column in a row."""

        def walk(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: walk(v) for k, v in value.items()}
            if not isinstance(value, (tuple, list)):
                return value
            items: list[Any] = []
            at = 0
            while at < len(value):
                column = self.where.get(value[at], (-1, 0))[0] if _is_node(value[at]) else -1
                turns = self.columns[column] if column >= 0 else []
                if turns and list(value[at : at + len(turns)]) == turns:
                    items.append(whole(column))
                    at += len(turns)
                else:
                    items.append(walk(value[at]))
                    at += 1
            return type(value)(items)

        return walk(user.args), walk(dict(user.kwargs))

    # -- replacing ------------------------------------------------------------------------------

    def replace(self) -> None:
        """Puts one node in place of all turns."""
        readers = self._readers()
        lists: dict[int, None] = {}
        lasts: dict[int, None] = {}
        for user in readers:
            rest: list[fx.Node] = []
            fx.node.map_arg(self._rewritten(user, lists.setdefault), rest.append)
            lasts.update((self.where[n][0], None) for n in rest if n in self.where)
        results = [(c, True) for c in lists] + [(c, False) for c in lasts if c not in self.carried]
        carried = [c for c in self.carried if c in lasts]
        made = self._made(results, carried)
        swap = {self.columns[c][-1]: made[c, False] for c in lasts}
        for user in readers:
            given = self._rewritten(user, lambda c: made[c, True])
            user.args, user.kwargs = fx.node.map_arg(given, lambda n: swap.get(n, n))
        for node in sorted(self.where, key=lambda n: -self.order[n]):
            self.graph.erase_node(node)

    def _made(
        self, results: list[tuple[int, bool]], carried: list[int]
    ) -> dict[tuple[int, bool], fx.Node]:
        """The new node, and what stands for each result of it."""
        keys = [(c, False) for c in carried] + results
        container, start = numbered_call(self.anchors[0]) or ("", 0)
        origins = sorted({str(o) for n in self.where if (o := n.meta.get("origin"))})
        roll = Roll(
            container, start, len(self.anchors), self._turn([c for c, _ in results]),
            tuple(carried.index(c) if c in carried else None for c in self.carried),
            tuple(whole for _, whole in results), tuple(origins),
        )  # fmt: skip
        arguments = tuple(self.carried.values()), tuple(self.fixed), tuple(self.cycles)
        made: dict[tuple[int, bool], fx.Node] = {}
        with self.graph.inserting_after(max(self.where, key=lambda n: self.order[n])):
            node = self.graph.call_function(roll, arguments)
        node.meta["arity"] = len(keys)
        place = node
        for number, (column, whole) in enumerate(keys):
            with self.graph.inserting_after(place):
                place = self.graph.call_function(item, (node, number))
            place.meta = {"hint": _hint(self.columns[column])}
            made[column, whole] = place
            if whole:
                with self.graph.inserting_after(place):
                    made[column, whole] = self.graph.call_function(spread, (place,))
        return made

    def _turn(self, results: list[int]) -> fx.Graph:
        """The second turn as a graph: in the first, names are those from before the loop."""
        graph = fx.Graph()
        known: dict[fx.Node, fx.Node] = {}
        for column in self.carried:
            known[self.columns[column][0]] = graph.placeholder(f"carried_{column}")
        inputs = [*self.fixed, *(cycle[1] for cycle in self.cycles)]
        for number, node in enumerate(inputs):
            known[node] = graph.placeholder(f"input_{number}")
        for node, copy in known.items():
            copy.meta = dict(node.meta)
        turn = sorted((column[1] for column in self.columns), key=lambda n: self.order[n])
        for node in turn:
            known[node] = graph.node_copy(node, lambda n: known[n])
            known[node].meta = dict(node.meta)
        known[self.anchors[1]].meta["callee"] = True
        out = [known[self.columns[c][1]] for c in (*self.carried, *results)]
        graph.output(tuple(out))
        return graph


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _hint(column: list[fx.Node]) -> str | None:
    return next((n.meta["hint"] for n in column[1:] if n.meta.get("hint")), None)


def _operands(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def _shape(node: fx.Node, *, skip_target: bool = False) -> str:
    """The call without its operands."""
    held = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: None)
    # Some children may return a tuple, others one value.
    parts = node.op, "" if skip_target else node.target, held, node.meta.get("arity")
    return repr(parts)
