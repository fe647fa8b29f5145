"""Puts tuples back together that capture took apart: inputs that are one argument, and calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import fx

from ..tracing.notes import ARGUMENT, ARITY, HINT, PART, TAKEN_AS, VALUE, copied
from ..tracing.packing import PLAIN, Nest, Packing, count, numbered
from .loops.rolls import spread
from .names import plural


def agree(calls: Sequence[Collection[Any]]) -> None:
    """Has inputs be arguments of their own where calls reach classes that take others as one.

    Args:
        calls: the classes that each call may reach, None for what is none.
    """
    again = True
    while again:
        again = False
        for called in calls:
            if len({cls.packing if cls else PLAIN for cls in called}) > 1:
                again = True
                for cls in filter(None, called):
                    cls.packing = PLAIN


def pack_inputs(graph: fx.Graph, packing: Packing) -> None:
    """Has one input stand for those that are one argument, whose items are read off it."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    last = inputs[-1] if inputs else None
    rest = iter(inputs)
    for nest in packing.arguments:
        members = [next(rest) for _ in range(count(nest))]
        if nest is None:
            continue
        with graph.inserting_before(members[0]):
            whole = graph.placeholder(f"{members[0].name}_packed")
        name = numbered(str(HINT.get(members[0])))[0]  # of what clauses added
        HINT.put(whole, ARGUMENT.get(members[0]) or plural(name))
        assert last is not None
        after = whole if last in members else last
        _read(graph, whole, nest, iter(members), after)
        for member in members:
            graph.erase_node(member)


PAIR = ("height", "width")
"""What two sizes that are handed on together are called."""


def _read(graph: fx.Graph, whole: fx.Node, nest: Nest, members: Any, after: fx.Node) -> fx.Node:
    """Reads members off a tuple, after some node; the last one that was added."""
    assert nest is not None
    ARITY.put(whole, len(nest))
    for number, inner in enumerate(nest):
        with graph.inserting_after(after):
            after = item = graph.call_function(operator.getitem, (whole, number))
        if inner is None:
            member = next(members)
            copied(member, item)
            PART.drop(item)
            member.replace_all_uses_with(item)
            HINT.drop(item)
            if len(nest) == len(PAIR) and isinstance(VALUE.get(item), int):
                HINT.put(item, PAIR[number])
        else:
            after = _read(graph, item, inner, members, after)
    return after


def pack_calls(graph: fx.Graph, taken_by: Callable[[str], tuple[Packing, tuple[str, ...]]]) -> None:
    """Hands tuples to what takes them."""
    for node in graph.nodes:
        if node.op == "call_module":
            packing, names = taken_by(str(node.target))
            node.args = packing.packed(node.args) if packing else node.args
            if names:
                TAKEN_AS.put(node, names)


def rejoin(graph: fx.Graph) -> None:
    """Has calls read a tuple, or a part of it, rather than all of its items."""
    for node in list(graph.nodes):
        if node.op.startswith("call") and node.target not in _INDEXING:
            node.args = tuple(_joined(graph, node, value) for value in node.args)
            node.kwargs = {k: _joined(graph, node, value) for k, value in node.kwargs.items()}
            if node.op == "call_module":
                node.args = tuple(_starred(graph, node, list(node.args)))


MANY = 4
"""From so many items on, a tuple that is handed on item by item is written `*values[1::3]`."""


def _starred(graph: fx.Graph, call: fx.Node, values: list[Any]) -> list[Any]:
    """Arguments with a part of a tuple in place of its items."""
    found: list[Any] = []
    while values:
        owner, first = _item(values[0])
        step = _item(values[1])[1] - first if len(values) > 1 else 0
        count = 1
        while owner is not None and step > 0 and count < len(values):
            if _item(values[count]) != (owner, first + count * step):
                break
            count += 1
        if count < MANY or owner is None or owner.op == "call_module":
            found.append(values.pop(0))
            continue
        stop = first + (count - 1) * step + 1
        end = None if stop + step > ARITY.of(owner) else stop
        part = slice(first or None, end, None if step == 1 else step)
        with graph.inserting_before(call):
            items = graph.call_function(operator.getitem, (owner, part))
            found.append(graph.call_function(spread, (items,)))
        values = values[count:]
    return found


_GENERAL = {"x", "input", "hidden_state", "hidden_states"}
"""Names of arguments that say nothing of what is handed over."""


def name_items(graph: fx.Graph) -> None:
    """Calls results that have no name what they are called where they are handed to."""
    for node in graph.nodes:
        for value, name in zip(node.args, TAKEN_AS.get(node, ()), strict=False):
            nameless = _item(value)[0] is not None and not HINT.get(value)
            if nameless and name not in _GENERAL:
                HINT.put(value, name)


def name_tuples(graph: fx.Graph) -> None:
    """Calls tuples what they are called where they are handed to."""
    for node in graph.nodes:
        for value, name in zip(node.args, TAKEN_AS.get(node, ()), strict=False):
            if isinstance(value, fx.Node) and ARITY.on(value) and value.op != "placeholder":
                named = value.target is operator.getitem or len(value.users) > 1
                HINT.put(value, HINT.get(value) or (name if named else None))


_INDEXING = frozenset({operator.getitem, operator.setitem})  # by a list means something else


def _joined(graph: fx.Graph, call: fx.Node, value: Any) -> Any:
    if not isinstance(value, (tuple, list)) or len(value) < 2:
        return value
    items = [_joined(graph, call, each) for each in value]
    owner, start = _item(items[0])
    if owner is None or any(_item(v) != (owner, start + i) for i, v in enumerate(items)):
        return type(value)(items)
    if (start, len(items)) == (0, ARITY.of(owner)):
        return owner
    if owner.op == "call_module":  # whose results have names of their own
        return type(value)(items)
    with graph.inserting_before(call):
        stop = start + len(items)
        part = slice(start or None, None if stop == ARITY.of(owner) else stop)
        return graph.call_function(operator.getitem, (owner, part))


def _item(value: Any) -> tuple[fx.Node | None, int]:
    """The tuple that a value is an item of, and its number."""
    if not isinstance(value, fx.Node) or value.target is not operator.getitem:
        return None, 0
    owner, number = value.args
    found = isinstance(owner, fx.Node) and ARITY.on(owner) and isinstance(number, int)
    return (owner, number) if found else (None, 0)  # type: ignore[return-value]
