"""Loops whose turns do more than call a layer: several values go from turn to turn.

All turns of such a loop become one node, which holds one turn as a graph (see `rolls`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx, nn

from ..tracing.template import copy_graph
from .effects import has_effect, may_change
from .growing import Turns, shape
from .loops import find_loops, numbered_call
from .rolls import Roll, item, spread

LEAST = 3  # turns; fewer are no shorter as a loop
Key = tuple[bool, tuple[int, ...]]  # whether values are collected, and of which columns


def roll_up(graph: fx.Graph, module: nn.Module) -> fx.Graph:
    """The graph with one node for all turns of each such loop, which is only good for printing."""
    simple = {n for loop in find_loops(graph) for n in loop.nodes}
    runs = [run for run in _runs(graph) if not simple.intersection(run)]
    for names in [[n.name for n in run] for run in runs]:
        graph = _roll_run(graph, module, names)
    return graph


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
        if consecutive and all(len(n) == 1 for n in children.values()):
            runs.append([nodes[0] for nodes in children.values()])
    return runs


def _roll_run(graph: fx.Graph, module: nn.Module, names: list[str]) -> fx.Graph:
    """Rolls up the first part of a run of calls that can be, and what is left of the run."""
    if len(names) < LEAST:
        return graph
    by_name = {n.name: n for n in graph.nodes}
    for start, stop, step in _parts([shape(by_name[n], of_call=True) for n in names]):
        attempt = copy_graph(graph)
        copies = {n.name: n for n in attempt.nodes}
        calls = [copies[name] for name in names[start:stop]]
        _take_apart(attempt, calls)
        turns = Turns(attempt, [calls[i::step] for i in range(step)])
        if turns.grow() and _keeps_order(turns, module) and _replace(turns):
            attempt = _roll_run(attempt, module, names[:start])
            return _roll_run(attempt, module, names[stop:])
    return graph


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


# -- checking -------------------------------------------------------------------------------------


def _keeps_order(turns: Turns, module: nn.Module) -> bool:
    """Whether random draws, and changes of tensors, happen when they did before."""
    order = turns.order
    inside = sorted(turns.where, key=order.__getitem__)
    start, end = order[inside[0]], order[inside[-1]]
    between = [n for n, i in order.items() if start < i < end and n not in turns.where]
    if any(has_effect(n, module) for n in between):
        return False
    if any(order[user] < end for n in inside for user in n.users if user not in turns.where):
        return False
    rank = {turns.where[node][0]: i for i, node in enumerate(turns.turn(1))}
    place = {n: (turn, rank[column]) for n, (column, turn) in turns.where.items()}
    drawn = [place[n] for n in inside if has_effect(n, module)]
    return drawn == sorted(drawn) and all(
        max((place[n] for n in inside[:i]), default=(-1, 0)) < place[node]
        and all(place[n] > place[node] for n in inside[i + 1 :])
        for i, node in enumerate(inside)
        if may_change(node, module)
    )


# -- replacing ------------------------------------------------------------------------------------


def _replace(turns: Turns) -> bool:
    """Puts one node in place of all turns; whether that can give all that is read of them."""
    readers = {user: None for node in turns.where for user in node.users if user not in turns.where}
    lists: dict[tuple[int, ...], None] = {}
    rest: list[fx.Node] = []
    for user in readers:
        fx.node.map_arg(_with_lists(turns, user, lists.setdefault), rest.append)
    rest = [n for n in rest if n in turns.where]
    if any(turns.where[n][1] < len(turns.begins) - 1 or "arity" in n.meta for n in rest):
        return False  # a value of one turn, or a tuple that is passed on as a whole
    lasts = dict.fromkeys(turns.where[n][0] for n in rest)
    made = _made(turns, list(lasts), list(lists))
    swap = {n: made[False, turns.where[n][:1]] for n in rest}
    for user in readers:
        given = _with_lists(turns, user, lambda columns: made[True, columns])
        user.args, user.kwargs = fx.node.map_arg(given, lambda n: swap.get(n, n))
    for node in sorted(turns.where, key=lambda n: -turns.order[n]):
        turns.graph.erase_node(node)
    return True


def _with_lists(
    turns: Turns, user: fx.Node, whole: Callable[[tuple[int, ...]], Any]
) -> tuple[Any, Any]:
    """The arguments of a reader, with `whole(columns)` for the values of all turns in a row."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items()}
        if not isinstance(value, (tuple, list)):
            return value
        items: list[Any] = []
        at = 0
        while at < len(value):
            columns = _columns_at(turns, value[at:])
            items.append(whole(columns) if columns else walk(value[at]))
            at += len(columns) * len(turns.begins) or 1
        return type(value)(items)

    return walk(user.args), walk(dict(user.kwargs))


def _columns_at(turns: Turns, values: Sequence[Any]) -> tuple[int, ...]:
    """The columns whose values, turn by turn, `values` begin with; none if they do not."""
    found: list[int] = []
    for value in values:
        column, turn = turns.where.get(value, (0, -1)) if isinstance(value, fx.Node) else (0, -1)
        if turn != 0:
            break
        found.append(column)
    wanted = [turns.columns[c][turn] for turn in range(len(turns.begins)) for c in found]
    return tuple(found) if list(values[: len(wanted)]) == wanted else ()


def _made(
    turns: Turns, lasts: list[int], lists: list[tuple[int, ...]]
) -> dict[Key, fx.Node]:
    """Makes the node; what stands for each of its results."""
    carried = [(c,) for c in turns.carried if c in lasts]
    others = [(c,) for c in lasts if c not in turns.carried]
    keys = [(False, c) for c in (*carried, *others)] + [(True, columns) for columns in lists]
    container, start = numbered_call(turns.calls[0][0]) or ("", 0)
    results = [c for _, columns in keys[len(carried) :] for c in columns]
    roll = Roll(
        container, start, len(turns.begins), len(turns.calls), _turn(turns, results),
        tuple(carried.index((c,)) if (c,) in carried else None for c in turns.carried),
        tuple(len(columns) if whole else 0 for whole, columns in keys[len(carried) :]),
        tuple(sorted({str(o) for n in turns.where if (o := n.meta.get("origin"))})),
    )  # fmt: skip
    graph = turns.graph
    arguments = tuple(turns.carried.values()), tuple(turns.fixed), tuple(map(tuple, turns.cycles))
    with graph.inserting_after(max(turns.where, key=turns.order.__getitem__)):
        place = node = graph.call_function(roll, arguments)
    node.meta["arity"] = len(keys)
    made: dict[Key, fx.Node] = {}
    for number, (whole, columns) in enumerate(keys):
        with graph.inserting_after(place):
            place = result = graph.call_function(item, (node, number))
        result.meta = {"hint": _hint(turns.columns[columns[0]])}
        if whole:
            with graph.inserting_after(place):
                place = graph.call_function(spread, (result,))
        made[whole, columns] = place
    return made


def _turn(turns: Turns, results: list[int]) -> fx.Graph:
    """The second turn as a graph: in the first, names are those from before the loop."""
    graph = fx.Graph()
    carried = [turns.columns[column][0] for column in turns.carried]
    known: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate([*carried, *turns.inputs]):
        known[node] = graph.placeholder(f"input_{number}")
    for node in turns.turn(1):
        known[node] = graph.node_copy(node, known.__getitem__)
    for node, copy in known.items():
        copy.meta = dict(node.meta)
    for number, column in enumerate(turns.calls):
        known[column[1]].meta["child"] = number
    graph.output(tuple(known[turns.columns[c][1]] for c in (*turns.carried, *results)))
    return graph


def _hint(column: Sequence[fx.Node]) -> str | None:
    return next((n.meta["hint"] for n in column[1:] if n.meta.get("hint")), None)
