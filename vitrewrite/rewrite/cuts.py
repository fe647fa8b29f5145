"""Moves the places where a block cuts its tokens, when there are more tokens in front."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..anatomy.sites import Cut
from .editor import Editor


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
    elif name != "getitem":
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
            at += len(source.meta["val"].shape) - taken
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
            grown = [*sizes[:number], size + count, *sizes[number + 1 :]]
            node.update_arg(1, type(sizes)(grown))
            return
