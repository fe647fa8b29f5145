"""Copies of parts of a graph, fed with other values, and results that grow by an item."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from torch import fx

from ..tracing.nodes import nodes_of
from ..tracing.notes import ARITY, VALUE, copied_without
from ..tracing.operators import is_inplace
from . import wiring
from .editor import Editor, relative

Path = tuple[Any, ...]
"""Where a series of results is in the result of a unit: indices and keys from outside in."""


def behind(sources: Iterable[fx.Node], stops: Container[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that depend on `sources`, but not only through `stops`; `sources` included."""
    queue = list(sources)
    found = set(queue)
    while queue:
        for user in queue.pop().users:
            if user not in found and user not in stops and user.op != "output":
                found.add(user)
                queue.append(user)
    return found


def ahead(targets: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that `targets` depend on; `targets` included."""
    queue = list(targets)
    found = set(queue)
    while queue:
        for source in queue.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                queue.append(source)
    return found


def ordered_ahead(targets: Sequence[fx.Node]) -> list[fx.Node]:
    """Those of `ahead` in the order of their program."""
    found = ahead(targets)
    return [n for n in targets[0].graph.nodes if n in found] if targets else []


def copy(
    targets: Iterable[fx.Node], given: Mapping[fx.Node, fx.Node], anchor: fx.Node
) -> dict[fx.Node, fx.Node]:
    """Computes `targets` from other values.

    What an equal node computes already is not computed again.

    Args:
        targets: nodes of one graph.
        given: by node what stands for it.
        anchor: the copies are written in front of it.

    Returns:
        By node what stands for it, `given` included.
    """
    made, graph = dict(given), anchor.graph
    needed = behind(given) & ahead(targets)
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node not in needed or node in made:
            continue
        twin = next((t for t in _twins(node, made) if order.get(t, -1) < order[anchor]), None)
        if twin is None:
            with graph.inserting_before(anchor):
                twin = graph.node_copy(node, lambda n: made.get(n, n))
            # Lengths may differ from those of the original.
            copied_without(node, twin, VALUE)
        made[node] = twin
    return made


def _twins(node: fx.Node, made: Mapping[fx.Node, fx.Node]) -> list[fx.Node]:
    """Nodes that compute what a copy of `node` would."""
    args = fx.node.map_arg(node.args, lambda n: made.get(n, n))
    kwargs = fx.node.map_arg(node.kwargs, lambda n: made.get(n, n))
    sources = [made[n] for n in node.all_input_nodes if n in made]
    return [
        user
        for user in (sources[0].users if sources else ())
        if (user.op, user.target, user.args, user.kwargs) == (node.op, node.target, args, kwargs)
    ]


def erase_unread(node: fx.Node) -> None:
    """Erases a node that nobody reads, and what only it did, also where that is in place."""
    sources = node.all_input_nodes
    changed = sources[:1] if is_inplace(node.target) else []
    kept = node.users or node.op == "placeholder" or any(len(n.users) > 1 for n in changed)
    if kept or node._erased:
        return
    node.graph.erase_node(node)
    for source in sources:
        erase_unread(source)


def widen(editor: Editor, unit: str, slots: Mapping[Path, int]) -> None:
    """Tells the callers of a unit that series in its result have an item more.

    Wherever the item before the new one ends up in a series of results, what is made of the new
    one in the same way is put behind it.

    Args:
        editor: of the model.
        unit: path of the unit.
        slots: by series the index of the new item, which those behind it have moved up for.
    """
    if not unit:
        return
    above, _ = wiring.caller(editor, unit)
    graph = editor.graph(above)
    (call,) = wiring.calls_of(graph, relative(unit, above))
    output = next(n for n in graph.nodes if n.op == "output")
    made: dict[fx.Node, fx.Node] = {}
    passed: dict[Path, int] = {}
    for path, slot in slots.items():
        for where in _returned(output.args[0], call):
            passed[(*where, *path)] = slot
        for series in _items(call, path):
            for where in _returned(output.args[0], series):
                passed[where] = slot
            made |= _shifted(series, slot)
    mapping = copy(behind(made), made, output) if made else {}
    result, grown = insert(output.args[0], mapping)
    output.args = (result,)
    widen(editor, above, {**passed, **grown})


def _items(call: fx.Node, path: Path) -> list[fx.Node]:
    """The nodes that hold the item at a path of what a call yields."""
    found = [call]
    for key in path:
        found = [
            u for n in found for u in n.users if u.target is operator.getitem and u.args[1] == key
        ]
    return found


def _shifted(series: fx.Node, slot: int) -> dict[fx.Node, fx.Node]:
    """Moves the indices behind a slot up; the item before it, and that in it."""
    made = {}
    if ARITY.on(series):
        ARITY.put(series, ARITY.of(series) + 1)
    for user in list(series.users):
        index = user.args[1] if user.target is operator.getitem else None
        if isinstance(index, int) and index >= slot:
            user.update_arg(1, index + 1)
        elif index == slot - 1:
            with series.graph.inserting_after(user):
                made[user] = series.graph.call_function(operator.getitem, (series, slot))
            copied_without(user, made[user], VALUE)
    return made


def _returned(value: Any, node: fx.Node) -> list[Path]:
    """Where a node is in a result."""
    if value is node:
        return [()]
    if isinstance(value, dict):
        return [(k, *p) for k, v in value.items() for p in _returned(v, node)]
    if isinstance(value, (tuple, list)):
        return [(i, *p) for i, v in enumerate(value) for p in _returned(v, node)]
    return []


def insert(
    value: Any, made: Mapping[fx.Node, fx.Node], path: Path = ()
) -> tuple[Any, dict[Path, int]]:
    """A result, at a path of the whole, in which items of series are followed by their twins.

    Returns:
        The result, and by series the slot of the last twin.
    """
    if isinstance(value, dict):
        found = {k: insert(v, made, (*path, k)) for k, v in value.items()}
        slots = {p: s for _, more in found.values() for p, s in more.items()}
        return {k: v for k, (v, _) in found.items()}, slots
    if not isinstance(value, (tuple, list)):
        return value, {}
    items: list[Any] = []
    slots = {}
    for i, item in enumerate(value):
        inner, more = insert(item, made, (*path, i))
        slots |= more
        items.append(inner)
        # What a unit returns by itself is no series.
        if path and any(n in made for n in nodes_of(item)) and not more:
            slots[path] = len(items)
            items.append(fx.node.map_arg(item, lambda n: made.get(n, n)))
    return type(value)(items) if isinstance(value, tuple) else items, slots


def append(value: Any, made: Mapping[fx.Node, fx.Node]) -> tuple[Any, dict[Path, int]]:
    """A result in which the last items of series are followed by their twins.

    What stands by itself becomes its twin.

    Returns:
        The result, and by series the slot that its last item but one is to be mirrored for.
    """
    result, slots = insert(value, made)
    alone = tuple(
        made.get(v, v) if isinstance(v, fx.Node) else v
        for v in (result if isinstance(result, tuple) else (result,))
    )
    kept = alone if isinstance(result, tuple) else alone[0]
    return kept, {path: slot - 1 for path, slot in slots.items()}
