"""Puts one node, which holds one turn as a graph, in place of all turns of a loop."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from ...tracing.notes import ARITY, CHILD, HINT, ORIGIN, OTHER, copied, noted
from ..alike import numbered_call
from .growing import Turns
from .rolls import Roll, item, spread

Key = tuple[bool, tuple[int, ...]]  # whether values are collected, and of which columns


def fold(turns: Turns) -> bool:
    """Puts one node in place of all turns; whether that can give all that is read of them."""
    readers = {user: None for node in turns.where for user in node.users if user not in turns.where}
    lists: dict[tuple[int, ...], None] = {}
    rest: list[fx.Node] = []
    for user in readers:
        fx.node.map_arg(_with_lists(turns, user, lists.setdefault), rest.append)
    rest = [n for n in rest if n in turns.where]
    whole = [n for n in rest if ARITY.on(n) and n.target is not operator.getitem]
    if whole or any(turns.where[n][1] < len(turns.begins) - 1 for n in rest):
        return False  # all that a call returns, passed on as it is, or a value of one turn
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


def _made(turns: Turns, lasts: list[int], lists: list[tuple[int, ...]]) -> dict[Key, fx.Node]:
    """Makes the node; what stands for each of its results."""
    carried = [(c,) for c in turns.carried if c in lasts]
    others = [(c,) for c in lasts if c not in turns.carried]
    keys = [(False, c) for c in (*carried, *others)] + [(True, columns) for columns in lists]
    container, start = numbered_call(turns.calls[0][0]) or ("", 0)
    roll = Roll(
        container,
        start,
        len(turns.begins),
        len(turns.calls),
        _turn(turns, [c for (c,) in others], lists),
        tuple(carried.index((c,)) if (c,) in carried else None for c in turns.carried),
        len(lists),
        _origins(turns),
    )
    graph = turns.graph
    arguments = tuple(turns.carried.values()), tuple(turns.fixed), tuple(map(tuple, turns.cycles))
    with graph.inserting_after(max(turns.where, key=turns.order.__getitem__)):
        place = node = graph.call_function(roll, arguments)
    ARITY.put(node, len(keys))
    hints = [next(filter(None, (HINT.get(n) for n in c[1:])), None) for c in turns.columns]
    for column, value in turns.carried.items():
        HINT.put(value, HINT.get(value) or hints[column])
    made: dict[Key, fx.Node] = {}
    for number, (whole, columns) in enumerate(keys):
        with graph.inserting_after(place):
            place = result = graph.call_function(item, (node, number))
        noted(result, {HINT: hints[columns[0]]})
        if not whole and (arity := ARITY.get(turns.columns[columns[0]][-1])):
            ARITY.put(result, arity)
        if whole:
            with graph.inserting_after(place):
                place = graph.call_function(spread, (result,))
        made[whole, columns] = place
    return made


def _origins(turns: Turns) -> tuple[str, ...]:
    """The clauses that put something into other turns than the one that is printed."""
    origins = {n: str(ORIGIN.of(n)) for n in turns.where if ORIGIN.get(n)}
    shown = {origins.get(n) for n in turns.turn(1)}
    return tuple(sorted({*origins.values()} - shown))


def _turn(turns: Turns, others: list[int], lists: list[tuple[int, ...]]) -> fx.Graph:
    """The second turn as a graph: in the first, names are those from before the loop."""
    graph = fx.Graph()
    carried = [turns.columns[column][0] for column in turns.carried]
    known: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate([*carried, *turns.inputs]):
        known[node] = graph.placeholder(f"input_{number}")
    filled = [graph.placeholder(f"list_{number}") for number in range(len(lists))]
    for node in turns.turn(1):
        known[node] = graph.node_copy(node, known.__getitem__)
    for node, copy in known.items():
        copied(node, copy)
    for number, column in enumerate(turns.columns):
        first = numbered_call(column[0])
        if number < len(turns.calls):
            CHILD.put(known[column[1]], number)
        elif first and column[0].target != column[1].target:
            OTHER.put(known[column[1]], first[1])
    graph.output(tuple(known[turns.columns[c][1]] for c in (*turns.carried, *others)))
    for values, columns in zip(filled, lists, strict=True):
        _append(graph, values, [known[turns.columns[c][1]] for c in columns])
    return graph


def _append(graph: fx.Graph, values: fx.Node, made: list[fx.Node]) -> None:
    """Puts values into a list as soon as they are made and those before them are in it."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for i, node in enumerate(made):
        with graph.inserting_after(max(made[: i + 1], key=order.__getitem__)):
            graph.call_method("append", (values, node))
