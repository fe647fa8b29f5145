"""The shape of a program without its literals, and the literals by position.

Templates that differ in literals only become one class; literals that differ become arguments of
its constructor.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch import fx

from ..tracing.guards import is_guard
from ..tracing.nodes import is_size, marks_of
from ..tracing.notes import ARITY, ORIGIN, POSITION, VALUE
from ..tracing.template import Template, copy_graph

Position = tuple[Any, ...]
"""Graph number, node number, then the path into the node's arguments."""


def skeleton(template: Template) -> tuple[Hashable, dict[Position, int | float]]:
    """The program with its int and float literals taken out, and these literals."""
    literals: dict[Position, int | float] = {}
    shape: list[Hashable] = [template.name]
    for i, graph in enumerate(template.graphs):
        number = {node: j for j, node in enumerate(graph.nodes)}
        for node, j in number.items():
            target = "" if node.op == "placeholder" else node.target
            own = {} if is_written_out(node) else literals
            parts = _abstract((node.args, dict(node.kwargs)), (i, j), number, own)
            fixed = tuple(own.items()) if own is not literals else ()
            shape.append((node.op, target, parts, fixed, *_seen(node)))
    return tuple(shape), literals


def is_written_out(node: fx.Node) -> bool:
    """Whether the literals of a node decide how others are printed, so that all must have them."""
    owner = node.args[0] if node.args else None
    item = node.target is operator.getitem and isinstance(owner, fx.Node) and ARITY.on(owner)
    order = node.op == "call_method" and node.target == "permute"
    return is_size(node) or item or order or is_guard(node)


def _seen(node: fx.Node) -> tuple[Hashable, ...]:
    """What else of a node its printed form depends on."""
    value = VALUE.get(node)
    sizes = {user.args[1] for user in node.users if is_size(user)}
    padded = bool(sizes) and node.target is torch.nn.functional.pad
    rank = value.dim() if (sizes - {0} or padded) and isinstance(value, torch.Tensor) else None
    number = isinstance(value, (int, float))
    return ORIGIN.get(node), ARITY.get(node), number, rank, *marks_of(node)


def _abstract(
    value: Any, at: Position, number: dict[fx.Node, int], literals: dict[Position, int | float]
) -> Hashable:
    def inner(v: Any, key: Any) -> Hashable:
        return _abstract(v, (*at, key), number, literals)

    if isinstance(value, fx.Node):
        return ("node", number[value])
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *(inner(v, i) for i, v in enumerate(value)))
    if isinstance(value, dict):
        return ("dict", *((k, inner(v, k)) for k, v in value.items()))
    if isinstance(value, slice):
        return ("slice", *(inner(v, i) for i, v in enumerate(slice_parts(value))))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        literals[at] = value
        return (type(value).__name__,)
    return (type(value).__name__, value)


def numbered(graph: fx.Graph) -> fx.Graph:
    """A copy whose nodes remember the positions that `skeleton` gave them."""
    result = copy_graph(graph)
    for j, node in enumerate(result.nodes):
        POSITION.put(node, j)
    return result


def replace_literals(graph: fx.Graph, index: int, new: dict[Position, Any]) -> None:
    """Puts other constants at some positions of the `index`-th graph of a template."""
    by_node: dict[int, dict[Position, Any]] = {}
    for position, value in new.items():
        if position[0] == index:
            by_node.setdefault(position[1], {})[position[2:]] = value
    for node in graph.nodes:
        mine = by_node.get(POSITION.get(node, -1))
        if mine:
            node.args = _put(node.args, (0,), mine)
            node.kwargs = _put(dict(node.kwargs), (1,), mine)


def _put(value: Any, at: Position, new: dict[Position, Any]) -> Any:
    if at in new:
        return new[at]
    if isinstance(value, (tuple, list)):
        return type(value)(_put(v, (*at, i), new) for i, v in enumerate(value))
    if isinstance(value, dict):
        return {k: _put(v, (*at, k), new) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_put(v, (*at, i), new) for i, v in enumerate(slice_parts(value))))
    return value


def slice_parts(value: slice) -> tuple[Any, Any, Any]:
    """Start, stop and step."""
    return value.start, value.stop, value.step
