"""Where a block cuts its tokens at a fixed number: the prefix from the patches.

Rotary positions are for patches only, so such models take the tokens in front apart: `q[:, :, 1:]`.
Whoever puts more tokens in front has to move these places; they are found by sending the numbers of
the tokens from where the block starts to what is cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from .blocks import place
from .flow import Flow, Op
from .rows import collapsed, numbers_of
from .sites import Block, Cut
from .trunk import BlockGroup
from .values import concrete

_SPLITS = ("split", "split_with_sizes", "tensor_split")


def with_tokens(
    blocks: tuple[Block, ...], flow: Flow, groups: list[BlockGroup]
) -> tuple[Block, ...]:
    """Blocks on a sequence, with what is known of their tokens."""
    cuts, found = Cuts(flow), []
    for block, group in zip(blocks, groups, strict=True):
        shape = group.first.point.shape
        if len(shape) != 3:
            found.append(block)
            continue
        axis = 1 if shape[-1] == block.dim or shape[1] != block.dim else 2
        found.append(replace(block, tokens=shape[axis], cuts=cuts.of(group, axis)))
    return tuple(found)


class Cuts:
    """Finds the cuts of the blocks of one model; equal blocks share the work."""

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._known: dict[object, int | None] = {}

    def of(self, group: BlockGroup, tokens_at: int) -> tuple[Cut, ...]:
        """The cuts of a block.

        Args:
            group: its sums.
            tokens_at: the axis of the tokens where it starts.
        """
        point = group.first.point
        found: dict[tuple[str, str], Cut] = {}
        for op in self.flow.members(group.last.sum.before & point.after & ~point.bit):
            bounds = _bounds(op)
            if not bounds:
                continue
            key = op.node, point.node, None if group.frame is None else group.frame.graph
            if key not in self._known:
                self._known[key] = _token_axis(op.inputs[0], point, tokens_at)
            axis = self._known[key]
            if axis in bounds:
                where = place(op)
                found[where.unit, where.node] = Cut(where, axis)
        return tuple(found.values())


def _bounds(op: Op) -> set[int]:
    """The axes along which an op cuts at fixed numbers."""
    node, rank = op.node, len(op.inputs[0].shape) if op.inputs else 0
    if op.name in ("getitem", "setitem") and rank:
        index: Any = node.args[1]
        if isinstance(index, slice):
            index = (index,)
        return set(_sliced(index, rank)) if isinstance(index, tuple) else set()
    if op.name == "narrow" and rank:
        start = node.args[2] if len(node.args) > 2 else node.kwargs.get("start")
        axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return {int(concrete(axis)) % rank} if type(start) is int else set()
    if op.name in _SPLITS and rank:
        sizes: Any = node.args[1] if len(node.args) > 1 else None
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        fixed = isinstance(sizes, (tuple, list)) and any(type(s) is int for s in sizes)
        return {int(concrete(axis)) % rank} if fixed else set()
    return set()


def _sliced(index: tuple[Any, ...], rank: int) -> list[int]:
    """The axes of a tensor that an index cuts or picks at fixed numbers."""
    taken = sum(i is not None and i is not Ellipsis for i in index)
    axis, found = 0, []
    for item in index:
        if item is Ellipsis:
            axis += rank - taken
        elif item is not None:
            pair = (item.start, item.stop) if isinstance(item, slice) else (item,)
            if any(type(b) is int and b >= 0 for b in pair):
                found.append(axis)
            axis += 1
    return found


def _token_axis(op: Op, point: Op, axis: int) -> int | None:
    """The axis of `op` along which all tokens of `point` lie in order, if there is one."""
    count = point.shape[axis]
    lengths = [count if i == axis else 1 for i in range(len(point.shape))]
    numbers = torch.arange(count, device="cpu")
    found = numbers_of(op, {point: numbers.reshape(lengths).expand(point.shape)})
    if found is None or not isinstance(found.index, torch.Tensor) or found.extra:
        return None
    order = collapsed(found.index)
    long = [i for i, length in enumerate(order.shape) if length > 1]
    same = len(long) == 1 and torch.equal(order.flatten(), numbers)
    return long[0] if same else None
