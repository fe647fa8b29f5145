"""Shapes that a graph states in numbers, for fewer parts than there were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .parts import MixedError, PartNumbers, axis_of, is_shaped, line, name_of
from .slices import ahead


def restate(parts: PartNumbers, count: int, *, only_check: bool = False) -> None:
    """Has the nodes of a graph make shapes for `count` parts.

    Args:
        parts: where they are.
        count: how many there will be.
        only_check: whether nothing is changed yet.

    Raises:
        MixedError: if a shape hangs on something else too, such as the batch.
    """
    for node in list(parts.known):
        if not is_shaped(node) or node.op not in ("call_method", "call_function"):
            if name_of(node) == "chunk":
                _expect_even(parts.known[node], parts.count)
            continue
        made = _restated(parts, node, count)
        if not only_check:
            node.args, node.kwargs = made


def _restated(parts: PartNumbers, node: fx.Node, count: int) -> tuple[Any, Any]:
    """The arguments of a node."""
    numbers, name = parts.known[node], name_of(node)
    if name == "split":
        return _pieces(parts, node, count)
    axis = axis_of(numbers)
    if axis is None:
        return node.args, node.kwargs
    if node.kwargs:
        raise MixedError(f"'{node.name}' states its shape by name")
    source, *rest = node.args
    front = [rest.pop(0)] if name == "unflatten" else []
    nested = len(rest) == 1 and isinstance(rest[0], (tuple, list))
    dims: list[Any] = list(rest[0]) if nested else rest  # type: ignore[arg-type]
    first = 0
    if front:
        first = parts.plain(front[0]) % (numbers.dim() - len(dims) + 1)
    place = axis - first
    if 0 <= place < len(dims):
        length = numbers.shape[axis] * count // parts.count
        dims[place] = _length(parts, dims[place], length, node)
    given = [tuple(dims)] if nested else dims
    return (source, *front, *given), node.kwargs


def _length(parts: PartNumbers, stated: Any, length: int, node: fx.Node) -> Any:
    """What a shape says of the axis on which the parts lie."""
    if isinstance(stated, int):
        return stated if stated == -1 else length
    if _follows(parts, stated):
        return stated
    if not all(_is_width(parts, n) for n in ahead([stated]) if n.op == "call_method"):
        raise MixedError(f"'{node.name}' states a shape that hangs on more than them")
    return length


def _follows(parts: PartNumbers, stated: fx.Node) -> bool:
    """Whether a size is that of a value with parts, along these."""
    if stated.target != "size" or len(stated.args) < 2:
        return False
    source, axis = stated.args
    numbers = parts.known.get(source)  # type: ignore[arg-type]
    return isinstance(numbers, torch.Tensor) and axis_of(numbers) == axis % numbers.dim()  # type: ignore[operator]


def _is_width(parts: PartNumbers, node: fx.Node) -> bool:
    """Whether a size is how many channels there are, which no batch and no image changes."""
    value = parts.values.get(node.args[0])  # type: ignore[arg-type]
    return node.target == "size" and isinstance(value, torch.Tensor) and node.args[1:] in (
        (value.dim() - 1,), (-1,)
    )  # fmt: skip


def _pieces(parts: PartNumbers, node: fx.Node, count: int) -> tuple[Any, Any]:
    """The arguments of a split."""
    source, sizes = node.args[0], node.args[1] if len(node.args) > 1 else None
    numbers = parts.known.get(source)  # type: ignore[arg-type]
    dim = parts.plain(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0))
    if not isinstance(numbers, torch.Tensor) or axis_of(numbers) != dim % numbers.dim():
        return node.args, node.kwargs
    _expect_even(parts.known[node], parts.count)
    listed = isinstance(sizes, (tuple, list))
    stated: Sequence[Any] = sizes if listed else [sizes]  # type: ignore[assignment]
    lengths = [parts.plain(s) * count // parts.count for s in stated]
    return (source, lengths if listed else lengths[0], *node.args[2:]), node.kwargs


def _expect_even(pieces: Any, count: int) -> None:
    """Raises MixedError unless each piece has as much of each part."""
    for piece in pieces:
        if axis_of(piece) is None:
            continue
        found = line(piece).long().clamp(min=0).bincount(minlength=count)
        if bool((found != found[0]).any()):
            raise MixedError("they are split apart")
