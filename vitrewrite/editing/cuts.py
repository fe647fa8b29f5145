"""Moves the places where a block cuts its tokens, when there are more tokens in front."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from ..anatomy.sites import Cut
from ..tracing.notes import VALUE
from ..tracing.numbers import plain
from .editor import Editor
from .slices import ahead


def lengthen(editor: Editor, cut: Cut, start: int, count: int) -> None:
    """From token `start` on there are `count` more tokens, or fewer if it is negative.

    A cut at `start` is behind them: they belong to what is in front.
    """
    node = editor.node(cut.place)
    first = start if count > 0 else start - count

    def moved(bound: Any) -> Any:
        return bound + count if type(bound) is int and bound >= first else bound

    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    index: Any = node.args[1]
    if name == "narrow":
        _move_narrow(node, moved)
    elif name == "tensor_split":
        node.update_arg(1, type(index)(moved(bound) for bound in index))
    elif name not in ("getitem", "setitem"):
        _move_split(node, first, count)
    elif isinstance(index, slice):
        node.update_arg(1, _slice(index, moved))
    else:
        number = _item(index, cut.axis, node)
        item = index[number]
        new = _slice(item, moved) if isinstance(item, slice) else moved(item)
        node.update_arg(1, (*index[:number], new, *index[number + 1 :]))


def _slice(item: slice, moved: Any) -> slice:
    return slice(moved(item.start), moved(item.stop), item.step)


def _item(index: tuple[Any, ...], axis: int, node: fx.Node) -> int:
    """Which item of an index is about an axis."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    taken = sum(i is not None and i is not Ellipsis for i in index)
    at = 0
    for number, item in enumerate(index):
        if item is Ellipsis:
            at += len(VALUE.of(source).shape) - taken
        elif item is not None:
            if at == axis:
                return number
            at += 1
    raise AssertionError("the index does not reach the axis")


def _move_narrow(node: fx.Node, moved: Any) -> None:
    """`narrow(axis, start, length)`."""
    args: tuple[Any, ...] = node.args
    kwargs: dict[str, Any] = dict(node.kwargs)
    names = ("start", "length")
    start, length = (args[i] if len(args) > i else kwargs[n] for i, n in enumerate(names, 2))
    begin = moved(start) if start else start
    values = begin, moved(start + length) - begin if type(length) is int else length
    for i, (name, value) in enumerate(zip(names, values, strict=True), 2):
        if len(args) > i:
            node.update_arg(i, value)
        else:
            node.update_kwarg(name, value)


def _move_split(node: fx.Node, first: int, count: int) -> None:
    """`split([1, n], axis)`: the piece in front of the first cut that moves grows."""
    sizes: Any = node.args[1]
    end = 0
    for number, size in enumerate(sizes):
        if type(size) is not int:
            return  # it follows the tokens
        end += size
        if end >= first:
            rest = [_shorter(node, s, count) for s in sizes[number + 1 :]]
            node.update_arg(1, type(sizes)([*sizes[:number], size + count, *rest]))
            return


def _shorter(split: fx.Node, size: Any, count: int) -> Any:
    """The size of a later piece: less by `count` if it is what the other pieces leave over."""
    source = split.args[0]
    assert isinstance(source, fx.Node)
    if not isinstance(size, fx.Node) or not ahead([size]) & ahead([source]):
        return size
    if size.target is operator.sub and size.args[1] == -count:
        return size.args[0]
    with split.graph.inserting_before(split):
        made = split.graph.call_function(operator.sub, (size, count))
    VALUE.put(made, plain(VALUE.of(size)) - count)
    return made
