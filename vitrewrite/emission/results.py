"""Results of a call that are one list in the source are one: `x, *positions = self.neck(x)`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from torch import fx

from ..tracing.guards import is_guard
from ..tracing.nodes import is_size
from ..tracing.notes import ARITY, HINT, KEY, LISTED
from ..tracing.packing import numbered
from .alike import operands
from .names import plural
from .packs import MANY

LEAST = 3
"""Fewer results have names of their own."""


def star_results(graph: fx.Graph) -> None:
    """Has calls give lists of what is handed on side by side; one for each call, as Python has it.

    So are results that the source has in a list, and what clauses added with numbered names.
    """
    for call in [n for n in graph.nodes if n.op == "call_module" and ARITY.on(n)]:
        items = {n.args[1]: n for n in call.users if n.target is operator.getitem}
        for name, group in groupby(range(ARITY.of(call)), partial(_list, items)):
            run = [items[i] for i in group] if name else []
            if LEAST <= len(run) < ARITY.of(call) and _is_handed_on(run):
                _star(graph, call, run, str(name))
                break


def _list(items: Mapping[Any, fx.Node], number: int) -> str | None:
    """What the list is called that a result is in."""
    item = items.get(number)
    if item is None or ARITY.on(item):
        return None
    stem, place = numbered(str(HINT.get(item)))
    return LISTED.get(item) or (plural(stem) if place >= 0 else None)


def _is_handed_on(run: Sequence[fx.Node]) -> bool:
    """Whether whatever reads one of some values hands on all of them, side by side."""
    for user in dict.fromkeys(user for node in run for user in node.users):
        if user.op not in ("call_module", "output"):
            return False
        mentions = [node for node in operands(user) if node in run]
        found = sum(_times(each, run) for each in _tuples(user, len(run)))
        if len(mentions) != found * len(run):
            return False
    return True


def _tuples(user: fx.Node, count: int) -> Iterator[Sequence[Any]]:
    """The tuples in which values can stand as a list, or as `*values` where they are many."""
    stack: list[Any] = list(user.args)
    if user.op == "call_module" and count >= MANY:
        yield user.args
    while stack:
        value = stack.pop()
        if isinstance(value, (tuple, list)):
            yield value
            stack += value


def _times(values: Sequence[Any], run: Sequence[fx.Node]) -> int:
    """How often some values stand in others, in a row."""
    count = len(run)
    rows = (values[i : i + count] for i in range(len(values) - count + 1))
    return sum(all(a is b for a, b in zip(row, run, strict=True)) for row in rows)


def _star(graph: fx.Graph, call: fx.Node, run: Sequence[fx.Node], name: str) -> None:
    first = min(int(str(node.args[1])) for node in run)
    with graph.inserting_after(call):
        values = graph.call_function(operator.getitem, (call, slice(first, first + len(run))))
    ARITY.put(values, len(run))
    HINT.put(values, name)
    for number, node in enumerate(run):
        node.args = (values, number)


def is_starred(item: fx.Node) -> bool:
    """Whether an item of what a call gives is a list of several of its results."""
    sliced = item.target is operator.getitem and isinstance(item.args[1], slice)
    return sliced and ARITY.on(item)


def name_results(
    graph: fx.Graph, yielded_by: Callable[[str], tuple[str | None, ...]]
) -> tuple[str | None, ...]:
    """Calls results what they are called where they are made, if the caller has no name for them.

    Args:
        graph: a program.
        yielded_by: of what it calls, what is yielded there.

    Returns:
        What the program itself yields.
    """
    seen = False  # whether something is called after it, which is when a trace looks for names
    for call in reversed(graph.nodes):
        if call.op == "call_module" and ARITY.on(call):
            names = dict(enumerate(yielded_by(str(call.target))))
            for item in filter(_is_item, call.users):
                name = (KEY.get(item) if seen else None) or names.get(item.args[1])
                if name and not _own_name(item):
                    HINT.put(item, name)
        read = call.target in (operator.getitem, getattr) or is_size(call) or is_guard(call)
        seen = seen or (call.op.startswith("call") and not read)
    value = graph.output_node().args[0]
    if isinstance(value, fx.Node) and value.op == "call_module":
        return yielded_by(str(value.target))
    return tuple(map(_own_name, value)) if isinstance(value, tuple) else ()


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _own_name(value: Any) -> str | None:
    """What a value is called in the source, or the module that makes it."""
    if not isinstance(value, fx.Node):
        return None
    hint = str(HINT.get(value) or "")
    made = str(value.target).rpartition(".")[2] if value.op == "call_module" else ""
    name = hint if hint.strip("_") and not re.fullmatch(r"getitem(_\d+)?", hint) else made
    return name if name and not name.isdigit() else None
