"""What belongs to a turn of a loop, grown from the calls of `layers.0`, `layers.1`, ...

The programs of all turns are walked against the flow in lockstep. At each place the turns read

- one value from outside, which is *fixed*;
- values that the turns make alike: a *column*, whose operands are walked in turn;
- what the turn before made, a *carried* value: it has a first value from outside;
- different values from outside, which alternate: a *cycle*, written `values[i % 3]`.

Then what is made of a column alone joins it, so that it can be collected turn by turn.

The first turn is unlike the others: it reads a carried value from outside, where every other reads
it from the turn before. So roles are decided by what the second turn reads. A value has one role:
what is made in the loop and read from outside of it, or read in two ways, ends the attempt.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from ...tracing.notes import ARITY, copied
from ..alike import numbered_call, operands, shape

Column = Sequence[fx.Node]  # a node of each turn


class Turns:
    """The parts of a loop.

    Attributes:
        calls: columns of calls to the children, one per child that a turn calls.
        early: whether the turn before makes what it can, rather than the turn that reads it.
        columns: all columns, those first.
        where: the number of its column, and of its turn, for each node in the loop.
        carried: what stands for the value of a column before the first turn.
    """

    def __init__(self, graph: fx.Graph, calls: Sequence[Column], *, early: bool) -> None:
        self.graph = graph
        self.calls = calls
        self.early = early
        self.order: dict[fx.Node, float] = {n: i for i, n in enumerate(graph.nodes)}
        self.begins = [min(self.order[n] for n in turn) for turn in zip(*calls, strict=True)]
        self.ends = [max(self.order[n] for n in turn) for turn in zip(*calls, strict=True)]
        self.columns: list[Column] = []
        self.where: dict[fx.Node, tuple[int, int]] = {}
        self.carried: dict[int, fx.Node] = {}
        self.fixed: dict[fx.Node, None] = {}
        self.cycles: dict[Column, None] = {}
        for column in calls:
            self.add(column)

    @property
    def inputs(self) -> list[fx.Node]:
        """What the second turn reads from outside, carried values excepted."""
        return [*self.fixed, *(cycle[1] for cycle in self.cycles)]

    def turn(self, number: int) -> list[fx.Node]:
        """The nodes of a turn in order."""
        return sorted((column[number] for column in self.columns), key=self.order.__getitem__)

    def add(self, column: Column) -> None:
        """Adds a column: a node of each turn."""
        self.where |= {node: (len(self.columns), turn) for turn, node in enumerate(column)}
        self.columns.append(column)

    # -- growing --------------------------------------------------------------------------------

    def grow(self) -> bool:
        """Whether all that the calls read can be told apart, and nothing is read in two ways."""
        while self._add_items():
            pass
        done = 0
        while done < len(self.columns):
            if not self._is_series(self.columns[done]):
                return False
            places = zip(*map(operands, self.columns[done]), strict=True)
            if not all(self._place(values) for values in places):
                return False
            done += 1
            if done == len(self.columns):
                self._add_readers(self.columns)
        outside = {*self.fixed, *self.carried.values(), *(v for c in self.cycles for v in c)}
        return not outside.intersection(self.where) and len(set(self.inputs)) == len(self.inputs)

    def _is_series(self, column: Column) -> bool:
        """Whether children of a container that are called turn by turn follow each other."""
        numbers = [found[1] for found in map(numbered_call, column) if found]
        first = numbers[0] if numbers else 0
        alike = len({n.target for n in column}) == 1
        return alike or column in self.calls or numbers == [first + i for i in range(len(column))]

    def _place(self, values: Column) -> bool:
        """Finds the role of what the turns read at one place; whether it has one."""
        known = [self.where.get(v) for v in values]
        if len(set(values)) == 1:
            self.fixed.setdefault(values[0])
            return known[0] is None
        if known[1] is None:
            return not any(known) and self._place_new(values)
        column = known[1][0]
        turns = [(column, turn) for turn in range(len(values))]
        if known[0] is None and known[1:] == turns[:-1]:
            return self.carried.setdefault(column, values[0]) is values[0]
        return known == turns

    def _place_new(self, values: Column) -> bool:
        ways = [self._add_own, self._add_carried]
        if not any(way(values) for way in (reversed(ways) if self.early else ways)):
            self.cycles.setdefault(values)
        return True

    def _add_own(self, values: Column) -> bool:
        """Adds values that the turns make alike, if they do."""
        found = self._are_alike(values) and self._follow(values, self.ends)
        if found:
            self.add(values)
        return found

    def _add_carried(self, values: Column) -> bool:
        """Adds what the turns before made, if the last turn makes it, too.

        The loop cannot do less in its last turn than in the others.
        """
        if not self._are_alike(values[1:]) or not self._follow(values, self.begins):
            return False
        last = self._last_like(values[1])
        if last is None or last in self.where:
            return False
        self.carried[len(self.columns)] = values[0]
        self.add((*values[1:], last))
        return True

    def _are_alike(self, values: Column) -> bool:
        made = all(v.op not in ("placeholder", "get_attr") for v in values)
        return made and len(set(values)) == len(values) and len(set(map(shape, values))) == 1

    def _follow(self, values: Column, places: Sequence[float]) -> bool:
        """Whether all values but the first come after a place in the turn before."""
        return all(self.order[v] > p for v, p in zip(values[1:], places, strict=False))

    def _last_like(self, node: fx.Node) -> fx.Node | None:
        """What the last turn makes as the first one makes `node`."""
        like = {column[0]: column[-1] for column in self.columns}
        unread: list[fx.Node] = []
        for each in self._made_of(node):
            wanted = [like.get(o) for o in operands(each)]
            owner = next(filter(None, wanted), None)
            found = [u for u in owner.users if _fits(u, each, wanted)] if owner else []
            if owner and not found and each.target is operator.getitem:
                found = [self._unread_item(each, owner)]
                unread += found
            if found:
                like[each] = found[0]
        if node not in like:
            for item in reversed(unread):
                self.graph.erase_node(item)
        return like.get(node)

    def _made_of(self, node: fx.Node) -> list[fx.Node]:
        """In order, what `node` is made of since the first call, up to what is in the loop."""
        found: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in found and current not in self.where:
                found.add(current)
                stack += [o for o in operands(current) if self.order[o] > self.begins[0]]
        return sorted(found, key=self.order.__getitem__)

    def _unread_item(self, node: fx.Node, call: fx.Node) -> fx.Node:
        """An item that the last turn gives and nobody reads."""
        with self.graph.inserting_after(call):
            item = self.graph.call_function(operator.getitem, (call, node.args[1]))
        copied(node, item)
        self.order[item] = self.order[call] + 0.5
        return item

    # -- what is made of columns ----------------------------------------------------------------

    def _add_items(self) -> bool:
        """Adds the items of what the children return."""
        return self._add_readers([c for c in self.columns if ARITY.on(c[0])])

    def _add_readers(self, columns: Sequence[Column]) -> bool:
        """Adds a column of what is made from one column alone; whether there was one."""
        for column in columns:
            for first in column[0].users:
                if first.op == "output" or first in self.where:
                    continue
                found = [self._readers_like(first, node) for node in column]
                if all(len(readers) == 1 for readers in found):
                    self.add([readers[0] for readers in found])
                    return True
        return False

    def _readers_like(self, first: fx.Node, node: fx.Node) -> list[fx.Node]:
        wanted = shape(first)
        found = [u for u in node.users if shape(u) == wanted and operands(u) == [node]]
        return found if len(found) == 1 else [u for u in found if u.target == first.target]


def _fits(node: fx.Node, other: fx.Node, wanted: Sequence[fx.Node | None]) -> bool:
    """Whether `node` is as `other`, but reads what is `wanted`, where that is known."""
    pairs = zip(wanted, operands(node), strict=False)
    return shape(node) == shape(other) and all(w in (None, o) for w, o in pairs)
