"""Checks of sizes that the operations around them imply: they are not printed."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..tracing.guards import check_size
from ..tracing.nodes import is_size, operand
from ..tracing.notes import VALUE
from .access import children_at
from .tidy import origin

Size = tuple[Any, Any]  # a tensor and a dimension, or a size and None


def drop_implied(graph: fx.Graph, units: Sequence[nn.Module]) -> None:
    """Drops checks that cannot fail where what is computed anyway does not."""
    for node in list(graph.nodes):
        held = node.args[0] if node.target is check_size else None
        if not isinstance(held, fx.Node) or held.target is not operator.eq:
            continue
        sides = [_size(side, units) for side in held.args]
        if sides[0] == sides[1] or _is_split(graph, sides, units):
            graph.erase_node(node)


def _is_split(graph: fx.Graph, sides: list[Hashable], units: Sequence[nn.Module]) -> bool:
    """Whether the graph splits something of one size into parts whose sum is the other."""
    for node in graph.nodes:
        if node.target not in ("split", torch.split) or len(node.args) < 2:
            continue
        parts, dim = node.args[1], node.kwargs.get("dim", (*node.args, 0)[2])
        value = VALUE.get(operand(node))
        if isinstance(parts, (tuple, list)) and isinstance(value, torch.Tensor):
            whole = _dimension(operand(node), dim % value.dim(), units)
            total = _sum([_size(part, units) for part in parts])
            if total in sides and whole in sides:
                return True
    return False


def _size(value: Any, units: Sequence[nn.Module]) -> Hashable:
    """Equal for numbers that are equal whatever the sizes of the inputs are."""
    if not isinstance(value, fx.Node):
        return value  # type: ignore[no-any-return]
    if is_size(value):
        return _dimension(operand(value), value.args[1], units)
    sides = [_size(arg, units) for arg in value.args]
    if value.target is operator.add:
        return _sum(sides)
    if value.target is operator.mul:
        return operator.mul, *sorted(sides, key=repr)
    return (value.target, *sides) if value.op == "call_function" and sides else value


def _sum(terms: Sequence[Hashable]) -> Hashable:
    """A sum, whatever the order of its terms."""
    flat: list[Hashable] = []
    for term in terms:
        inner = isinstance(term, tuple) and term[:1] == (operator.add,)
        flat += term[1:] if inner else [term]  # type: ignore[index]
    return operator.add, *sorted(flat, key=repr)


def _dimension(tensor: fx.Node, dim: Any, units: Sequence[nn.Module]) -> Hashable:
    """Where the size of a tensor comes from."""
    found: Size | None = tensor, dim
    while found is not None:
        tensor, dim = found
        if dim is None:
            return _size(tensor, units)
        found = origin(tensor, dim, units) or _through(tensor, dim, units)
    return tensor, dim


_SAME = frozenset({F.softmax, torch.softmax, F.relu, torch.sigmoid})
_BY_NUMBER = frozenset({operator.mul, operator.truediv, operator.add, operator.sub})


def _through(node: fx.Node, dim: int, units: Sequence[nn.Module]) -> Size | None:
    """The same size of what an operation reads."""
    value = VALUE.get(node)
    if not isinstance(value, torch.Tensor) or not node.args:
        return None
    first, last = node.args[0], value.dim() - 1
    if not isinstance(first, fx.Node):
        return None
    if node.target is torch.bmm:
        return (first, dim) if dim < last else (operand(node, 1), dim)
    if node.target in _SAME:
        return first, dim
    if node.target in _BY_NUMBER and isinstance(node.args[1], (int, float)):
        return first, dim
    if node.target == "transpose" and node.op == "call_method":
        one, other = (int(d) % value.dim() for d in node.args[1:])  # type: ignore[arg-type]
        return first, {one: other, other: one}.get(dim, dim)
    if node.op == "call_module" and dim < last:
        children = children_at(units, str(node.target))
        return (first, dim) if all(type(c) is nn.Linear for c in children) else None
    return None
