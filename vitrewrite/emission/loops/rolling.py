"""Loops whose turns do more than call a layer: several values go from turn to turn.

All turns of such a loop become one node, which holds one turn as a graph (see `rolls`).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import product
from typing import Any

from torch import fx

from ...tracing.notes import ARITY
from ...tracing.template import copy_graph
from ..alike import numbered_call, shape
from ..effects import has_effect, may_change
from .draws import add_draws
from .folding import fold
from .growing import Turns
from .runs import find_loops

LEAST = 3  # turns; fewer are no shorter as a loop


def roll_up(graph: fx.Graph) -> fx.Graph:
    """The graph with one node for all turns of each such loop, which is only good for printing."""
    simple = {n for loop in find_loops(graph) for n in loop.nodes}
    runs = [run for run in _runs(graph) if not simple.intersection(run)]
    for names in [[n.name for n in run] for run in runs]:
        graph = _roll_run(graph, names)
    return graph


def _runs(graph: fx.Graph) -> list[list[fx.Node]]:
    """Calls of consecutive children of one container."""
    runs: list[list[fx.Node]] = []
    last: dict[str, tuple[int, list[fx.Node]]] = {}
    for node in graph.nodes:
        found = numbered_call(node)
        if found is not None:
            container, number = found
            before, run = last.get(container, (-1, []))
            if number != before + 1 or not run:
                runs.append(run := [])
            run.append(node)
            last[container] = number, run
    return runs


def _roll_run(graph: fx.Graph, names: list[str]) -> fx.Graph:
    """Rolls up the first part of a run of calls that can be, and what is left of the run."""
    by_name = {n.name: n for n in graph.nodes}
    gone = [i for i, name in enumerate(names) if name not in by_name]  # into another run's turns
    names = names[gone[-1] + 1 if gone else 0 :]
    if len(names) < LEAST:
        return graph
    parts = _parts([shape(by_name[n]) for n in names])
    for whole, (start, stop, step), early in product((False, True), list(parts), (False, True)):
        attempt = copy_graph(graph)
        copies = {n.name: n for n in attempt.nodes}
        calls = [copies[name] for name in names[start:stop]]
        _take_apart(attempt, calls)
        turns = Turns(attempt, [calls[i::step] for i in range(step)], early=early)
        if not turns.grow() or (not whole and _carries_tuples(turns)):
            continue
        add_draws(turns)
        if _keeps_order(turns) and fold(turns):
            attempt = _roll_run(attempt, names[:start])
            return _roll_run(attempt, names[stop:])
    return graph


def _carries_tuples(turns: Turns) -> bool:
    """Whether all that a call returns goes from turn to turn, not its items by their names."""
    return any(ARITY.on(n) and n in turns.calls[0] for c in turns.carried for n in turns.columns[c])


def _parts(shapes: list[str]) -> Iterator[tuple[int, int, int]]:
    """Start and stop of where the calls repeat, and after how many; what is simplest first.

    The first turn may differ because of what leads to it, the last one because of what follows.
    """
    for step in range(1, len(shapes) // LEAST + 1):
        start = 0
        while start + step * LEAST <= len(shapes):
            stop = start + step
            while stop < len(shapes) and shapes[stop] == shapes[stop - step]:
                stop += 1
            turns = (stop - start) // step
            for first, last in ((0, turns), (0, turns - 1), (1, turns)):
                if last - first >= LEAST and (step == 1 or first == 0):
                    yield start + first * step, start + last * step, step
            start = max(stop - step, start) + 1


def _take_apart(graph: fx.Graph, calls: list[fx.Node]) -> None:
    """Lets a returned tuple of a call be a tuple of its items, as they are of the other calls."""
    output = graph.output_node()
    found = [n for n in output.all_input_nodes if ARITY.on(n)]
    for node in found:
        owner = node
        while owner.target is operator.getitem and isinstance(owner.args[0], fx.Node):
            owner = owner.args[0]
        if owner in calls:
            with graph.inserting_after(node):
                numbers = reversed(range(ARITY.of(node)))
                items = [graph.call_function(operator.getitem, (node, i)) for i in numbers]
            items.reverse()
            if owner is node:
                _as_elsewhere(items, calls)
            output.args = (_put(output.args[0], node, tuple(items)),)


def _as_elsewhere(items: list[fx.Node], calls: list[fx.Node]) -> None:
    """An item that is a tuple where other calls return it is one here."""
    known = {
        n.args[1]: ARITY.of(n)
        for call in calls
        for n in call.users
        if n.target is operator.getitem and ARITY.on(n)
    }
    for number, item in enumerate(items):
        if number in known:
            ARITY.put(item, known[number])


def _put(value: Any, old: fx.Node, new: Any) -> Any:
    if value is old:
        return new
    if isinstance(value, (tuple, list)):
        return type(value)(_put(v, old, new) for v in value)
    return {k: _put(v, old, new) for k, v in value.items()} if isinstance(value, dict) else value


def _keeps_order(turns: Turns) -> bool:
    """Whether random draws, and changes of tensors, happen when they did before."""
    order = turns.order
    inside = sorted(turns.where, key=order.__getitem__)
    start, end = order[inside[0]], order[inside[-1]]
    between = [n for n, i in order.items() if start < i < end and n not in turns.where]
    if any(map(has_effect, between)):
        return False
    if any(order[user] < end for n in inside for user in n.users if user not in turns.where):
        return False
    rank = {turns.where[node][0]: i for i, node in enumerate(turns.turn(1))}
    place = {n: (turn, rank[column]) for n, (column, turn) in turns.where.items()}
    places = [place[n] for n in inside]
    rolled = sorted(places)
    drawn = [place[n] for n in inside if has_effect(n)]
    changes = [i for i, n in enumerate(inside) if may_change(n)]
    same = all(places[i] == rolled[i] and {*places[:i]} == {*rolled[:i]} for i in changes)
    return same and drawn == sorted(drawn)
