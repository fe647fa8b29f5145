"""Nodes that share a line: items of a tuple, sizes of a tensor, the parts of `t[i] += v`."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..tracing.guards import check_grid, check_input
from ..tracing.nodes import arg, is_size, operand
from ..tracing.notes import ARITY, VALUE
from .expressions import INPLACE
from .loops import rolls


def is_scalar(node: fx.Node) -> bool:
    """Whether the node is a number, or computes one from sizes."""
    return isinstance(VALUE.get(node), (int, float)) or (
        node.op == "call_function"
        and all(is_size(n) or is_scalar(n) for n in node.all_input_nodes)
        and bool(node.all_input_nodes)
    )


def unpacked(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Calls that return several values, with the items that are used (nested ones too)."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        items = [u for u in node.users if u.target is operator.getitem and u.args[0] is node]
        is_tuple = ARITY.on(node) and (node.target is not operator.getitem or _is_read(node, found))
        if (
            is_tuple
            and items
            and len(items) == len(node.users)
            and not any(isinstance(u.args[1], slice) and not ARITY.on(u) for u in items)
            and (len(items) > 1 or node.op == "call_module")
        ):
            found[node] = _items(node)
    return found


def _is_read(item: fx.Node, unpacked: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether an item of a list, rather than of what is unpacked, is a tuple of numbers."""
    owner = item.args[0]
    numbers = all(isinstance(VALUE.get(user), int) for user in item.users)
    listed = isinstance(owner, fx.Node) and owner.target is rolls.item
    return numbers and listed and owner not in unpacked


def _item_order(item: fx.Node) -> tuple[str, Any]:
    key: Any = item.args[1]
    return type(key).__name__, key


def _items(node: fx.Node) -> list[fx.Node]:
    result = []
    for user in sorted(node.users, key=_item_order):
        result += _items(user) if is_nested(user) else [user]
    return result


def is_nested(item: fx.Node) -> bool:
    """Whether an item of a tuple is a tuple of which only items are read."""
    starred = isinstance(item.args[1], slice)  # of several results of a call
    return (
        ARITY.on(item)
        and not starred
        and all(
            u.target is operator.getitem and u.args[0] is item and isinstance(u.args[1], int)
            for u in item.users
        )
    )


def sized(graph: fx.Graph, order: dict[fx.Node, int]) -> dict[fx.Node, dict[int, fx.Node]]:
    """Tensors whose shape is unpacked in a line of its own, with the sizes that are used."""
    reads: dict[fx.Node, dict[int, fx.Node]] = {}
    for node in graph.nodes:
        if is_size(node) and any(u.target not in (check_input, check_grid) for u in node.users):
            reads.setdefault(operand(node), {})[arg(node, 1)] = node
    return {t: sizes for t, sizes in reads.items() if not _reads_inline(t, sizes, order)}


def _reads_inline(tensor: fx.Node, sizes: dict[int, fx.Node], order: dict[fx.Node, int]) -> bool:
    """A single size read once, while its tensor is alive anyway, is written where it is used."""
    uses = [u for s in sizes.values() for u in s.users]
    others = [order[u] for u in tensor.users if not is_size(u)]
    last = max(others, default=-1)
    single = len(uses) == 1 and len(sizes) == 1
    return single and order[uses[0]] <= last


def augmented(graph: fx.Graph) -> set[fx.Node]:
    """Nodes of `t[i] += v`: the item and its change, which the assignment back prints."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.target is not operator.setitem or not isinstance(node.args[2], fx.Node):
            continue
        change = node.args[2]
        item = change.args[0] if change.target in INPLACE and len(change.users) == 1 else None
        if (
            isinstance(item, fx.Node)
            and item.target is operator.getitem
            and item.args == node.args[:2]
            and len(item.users) == 1
        ):
            found |= {change, item}
    return found
