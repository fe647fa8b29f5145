"""Rewrites that leave every value as it is and make a graph easier to read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from ..tracing.nodes import arg, is_size, operand
from ..tracing.notes import HINT, VALUE, copied
from .access import children_at

_SAME_SHAPE_LAYERS = (
    nn.LayerNorm, nn.Dropout, nn.Identity, nn.GELU, nn.ReLU, nn.SiLU, nn.BatchNorm2d, nn.GroupNorm,
    nn.Softmax, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
_SAME_SHAPE_METHODS = {"contiguous", "clone", "to", "float", "softmax", "sigmoid", "relu"}
_SAME_SHAPE_FUNCTIONS = {torch.roll, torch.softmax, nn.functional.gelu, nn.functional.silu}
_FILLED = {torch.zeros, torch.ones, torch.full, torch.empty}


def tidy(graph: fx.Graph, units: Sequence[nn.Module]) -> None:
    """Reads sizes where they were first known, and computes nothing about sizes twice.

    Args:
        graph: a program.
        units: all modules that share it: a child of one may keep a shape, that of another not.
    """
    for node in list(graph.nodes):
        if is_size(node):
            known = _known_size(operand(node), arg(node, 1), units)
            if known is not None:
                _replace(graph, node, known)
    _share(graph)
    for node in list(graph.nodes):
        if does_nothing(node):
            node.replace_all_uses_with(node.args[0])
        elif node.target is operator.sub and (left := _without(*node.args)) is not None:
            node.replace_all_uses_with(left)


def does_nothing(node: fx.Node) -> bool:
    """Whether a call returns what it is given: `mask.bool()` of booleans, `x[:, 0:]`."""
    if node.op == "placeholder" or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    value = VALUE.get(node.args[0])
    if node.target == "bool" and node.op == "call_method":
        return isinstance(value, torch.Tensor) and value.dtype == torch.bool
    if node.target is operator.getitem and isinstance(value, torch.Tensor):
        return takes_all(node.args[1])
    return False


def takes_all(index: Any) -> bool:
    """Whether an index takes all of a tensor, as it is."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(
        isinstance(p, slice) and p.start in (None, 0) and p.stop is None and p.step is None
        for p in parts
    )


def _without(total: Any, part: Any) -> fx.Node | None:
    """Writes `a + b - a`, of sizes, as `b`."""
    if not (isinstance(total, fx.Node) and total.target is operator.add and _is_scalar(total)):
        return None
    for one, other in (total.args, total.args[::-1]):
        if one is part and isinstance(other, fx.Node):
            return other
    return None


def _replace(graph: fx.Graph, node: fx.Node, known: tuple[Any, Any]) -> None:
    source, dim = known
    if dim is None:  # the size is an argument of the `view` that made the tensor
        node.replace_all_uses_with(source)
    else:
        with graph.inserting_after(_settled(source)):
            new = graph.call_method("size", (source, dim))
        copied(node, new)
        node.replace_all_uses_with(new)
    graph.erase_node(node)


def _settled(node: fx.Node) -> fx.Node:
    while node.op == "placeholder" and node.next.op == "placeholder":
        node = node.next
    while is_size(node.next):
        node = node.next
    return node


def _known_size(tensor: fx.Node, dim: int, units: Sequence[nn.Module]) -> tuple[Any, Any] | None:
    """An earlier tensor and dimension of the same size, or `(size, None)`."""
    found: tuple[Any, Any] | None = None
    current, at = tensor, dim
    while True:
        step = origin(current, at, units)
        if step is None:
            return found
        found = step
        if step[1] is None:
            return found
        current, at = step


def origin(node: fx.Node, dim: int, units: Sequence[nn.Module]) -> tuple[Any, Any] | None:
    """Where the size of a tensor was known before: a tensor and a dimension, or a size and None."""
    if node.target in _FILLED and isinstance(node.args[0], (tuple, list)):
        size = node.args[0][dim]
        return (size, None) if is_size(size) or _is_scalar(size) else None
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    if _keeps_shape(node, units):
        return source, dim
    if node.op == "call_method" and node.target in ("view", "reshape"):
        sizes = node.args[1] if isinstance(node.args[1], tuple) else node.args[1:]
        if dim < len(sizes) and (is_size(sizes[dim]) or _is_scalar(sizes[dim])):
            return sizes[dim], None
    if node.op == "call_method" and node.target == "permute":
        order: Any = node.args[1] if isinstance(node.args[1], tuple) else node.args[1:]
        return source, order[dim] % len(order)
    if node.target is nn.functional.pad:
        return _through_pad(node, dim)
    return None


def _is_scalar(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(VALUE.get(value), int)


def _through_pad(node: fx.Node, dim: int) -> tuple[Any, Any] | None:
    source, pads = operand(node), arg(node, 1)
    value = VALUE.get(source)
    if not isinstance(value, torch.Tensor):
        return None
    from_end = value.dim() - 1 - dim
    own = pads[2 * from_end : 2 * from_end + 2]
    return (source, dim) if all(isinstance(p, int) and p == 0 for p in own) else None


def _keeps_shape(node: fx.Node, units: Sequence[nn.Module]) -> bool:
    if node.op == "call_module":
        children = children_at(units, str(node.target))
        return all(isinstance(child, _SAME_SHAPE_LAYERS) for child in children)
    if node.op == "call_method":
        return node.target in _SAME_SHAPE_METHODS
    return node.target in _SAME_SHAPE_FUNCTIONS


def _share(graph: fx.Graph) -> None:
    """Equal reads and computations of sizes become one."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        pure = is_size(node) or (
            node.op == "call_function" and isinstance(VALUE.get(node), (int, float))
        )
        if not pure or node.target is operator.getitem:
            continue
        key = (node.op, node.target, str(node.args), str(node.kwargs))
        if key in seen:
            HINT.put(seen[key], HINT.get(seen[key]) or HINT.get(node))
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node
