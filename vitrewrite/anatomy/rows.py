"""Which rows of which linear layer a tensor shows, found by sending row numbers through the views.

The numbers 0..out-1 stand along the last axis of the layer's output, expanded (stride 0) over all
others, so views of any size cost nothing. Arithmetic keeps them where they are; where an
operation changes lengths the numbers follow along the axes that still fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .flow import Op, union
from .kinds import (
    FUSED_ATTENTION,
    JOINS,
    MATMULS,
    MOVES,
    PASSES,
    SDPA,
    VIEWS,
    is_conv,
    is_depthwise,
    layer_matrix,
    matrix,
)
from .values import concrete

RESHAPES = frozenset({"reshape", "view", "flatten", "unflatten", "contiguous"})
_REDUCTIONS = frozenset({"amax", "amin", "mean", "sum"})
_BARRIERS = MATMULS | {SDPA, FUSED_ATTENTION, "softmax", "Softmax"}


@dataclass
class Rows:
    """What a tensor shows of `linear`.

    Attributes:
        index: the row (or token) number of each element, None where that got lost; a tuple for
            an op that yields several tensors.
        extra: further rows that were mixed in.
    """

    linear: Op
    index: Any
    extra: frozenset[int] = frozenset()

    def span(self) -> tuple[int, int] | None:
        """The rows as a half-open range, or None if they have gaps or are not known."""
        if not isinstance(self.index, torch.Tensor):
            return None
        rows = self.rows()
        low, high = min(rows), max(rows) + 1
        return (low, high) if high - low == len(rows) else None

    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The rows as half-open ranges, in order."""
        found: list[tuple[int, int]] = []
        for row in sorted(self.rows()):
            if found and found[-1][1] == row:
                found[-1] = found[-1][0], row + 1
            else:
                found.append((row, row + 1))
        return tuple(found)

    def rows(self) -> frozenset[int]:
        """The numbers of the rows that are shown, as far as they are known."""
        if not isinstance(self.index, torch.Tensor):
            return self.extra
        return self.extra.union(compact(self.index).flatten().tolist())

    def axes(self) -> tuple[bool, ...]:
        """Per axis whether the rows differ along it; empty if that is not known."""
        if not isinstance(self.index, torch.Tensor):
            return ()
        return tuple(length > 1 for length in compact(self.index).shape)


class Unclear(Exception):  # noqa: N818 - not an error: the answer "several sources" or "none"
    """A tensor is not made from one linear layer; the message says from what."""


def rows_of(op: Op) -> Rows:
    """The rows of the one linear layer that `op` shows.

    Raises:
        Unclear: if there is no such layer, or more than one.
    """
    found = _Follower(0).follow(op)
    if found is None:
        raise Unclear("no linear layer")
    return found


def trail(op: Op) -> list[Op]:
    """What `rows_of(op)` looks at, in a fixed order: equal trails of nodes give equal rows."""
    found = {op: None}
    queue = [op]
    while queue:
        last = queue.pop()
        if matrix(last) is None and not _is_barrier(last):
            queue += [i for i in last.inputs if i not in found]
            found.update(dict.fromkeys(last.inputs))
    return list(found)


def positions_of(op: Op, source: Op, index: torch.Tensor) -> Rows | None:
    """Where the elements of `source`, numbered by `index`, are in `op`."""
    return numbers_of(op, {source: index})


def numbers_of(op: Op, known: Mapping[Op, torch.Tensor]) -> Rows | None:
    """The numbers that the elements of `op` have, if those of some tensors have the given ones."""
    source = next(iter(known))  # they count as one: numbers tell them apart
    follower = _Follower(union(known))
    follower.known |= {o: Rows(source, index) for o, index in known.items()}
    try:
        return follower.follow(op)
    except Unclear:
        return None


def compact(index: torch.Tensor) -> torch.Tensor:
    """`index` with length 1 along the axes it is expanded over."""
    return index[tuple(slice(0, 1) if s == 0 else slice(None) for s in index.stride())]


def collapsed(index: torch.Tensor) -> torch.Tensor:
    """`compact(index)`, with length 1 also along axes on which numbers only repeat."""
    index = compact(index)
    for axis, length in enumerate(index.shape):
        first = index.narrow(axis, 0, 1) if length > 1 else index
        index = first if torch.equal(first.expand_as(index), index) else index
    return index


class _Follower:
    """Walks back from an op; `sources`, a set, replace the linear layers as what is looked for."""

    def __init__(self, sources: int) -> None:
        self.sources = sources
        self.known: dict[Op, Rows | None] = {}

    def follow(self, op: Op) -> Rows | None:
        if op not in self.known:
            self.known[op] = self._follow(op)
        return self.known[op]

    def _follow(self, op: Op) -> Rows | None:
        if self.sources:
            if not op.before & self.sources:
                return None
        elif (base := _base(op)) is not None:
            return base
        elif _is_barrier(op):
            raise Unclear(f"{op.name} of {op.frame.path or 'the root'}")
        return _combine(op, [self.follow(i) for i in op.inputs])


def _is_barrier(op: Op) -> bool:
    return op.name in _BARRIERS or (is_conv(op) and not is_depthwise(op))


def _base(op: Op) -> Rows | None:
    weight = layer_matrix(op)
    if weight is None or not op.shape:
        return None
    numbers = torch.arange(weight.out_features, device="cpu")
    if matrix(op) is None:  # of a convolution, whose channels are the second axis
        numbers = numbers.reshape(-1, *[1] * (len(op.shape) - 2))
    return Rows(op, numbers.expand(op.shape))


def _combine(op: Op, parts: list[Rows | None]) -> Rows | None:
    if op.name in PASSES:  # `type_as` reads another tensor only for its type
        return parts[0]
    live = [p for p in parts if p is not None]
    if not live:
        return None
    first = live[0]
    if any(p.linear is not first.linear for p in live):
        raise Unclear("several linear layers")
    if len(op.inputs) == 1 and op.name in VIEWS | MOVES | _REDUCTIONS:
        return Rows(first.linear, _apply(op, first.index), first.extra)
    index = _joined(op, live) if op.name in JOINS else None
    index = _spread(op, live) if index is None else index
    if len(live) == 1:
        return Rows(first.linear, index, first.extra)
    result = Rows(first.linear, index)
    mixed = frozenset().union(*(p.rows() for p in live))
    return Rows(first.linear, index, mixed - result.rows())


def _joined(op: Op, live: list[Rows]) -> torch.Tensor | None:
    """Pieces of rows that a `cat` puts next to each other."""
    if op.name == "stack" or len(live) < len(op.inputs):
        return None
    dim = concrete(op.node.kwargs.get("dim", op.node.args[1] if len(op.node.args) > 1 else 0))
    if not all(isinstance(p.index, torch.Tensor) for p in live):
        return None
    dim %= len(op.shape)
    pieces = [compact(p.index) for p in live]
    if all(p.shape[dim] == 1 for p in pieces):
        return None  # along tokens: what is put together shows the same rows
    pieces = [_stretched(p, dim, q.index.shape[dim]) for p, q in zip(pieces, live, strict=True)]
    lengths = [max(p.shape[i] for p in pieces) for i in range(pieces[0].dim())]
    whole = [p.expand([*lengths[:dim], p.shape[dim], *lengths[dim + 1 :]]) for p in pieces]
    return torch.cat(whole, dim).expand(op.shape)


def _stretched(piece: torch.Tensor, dim: int, length: int) -> torch.Tensor:
    lengths = list(piece.shape)
    lengths[dim] = length
    return piece.expand(lengths)


def _spread(op: Op, live: list[Rows]) -> torch.Tensor | None:
    """The numbers of the first input that fits the shape of `op`."""
    for part in live:
        if isinstance(part.index, torch.Tensor) and part.index.dim() == len(op.shape):
            for small in (compact(part.index), collapsed(part.index)):
                if all(a in (1, b) for a, b in zip(small.shape, op.shape, strict=True)):
                    return small.expand(op.shape)
    return None


def _apply(op: Op, index: Any) -> Any:
    """The op itself, on numbers."""
    if index is None:
        return None
    if op.name in _REDUCTIONS or op.name in MOVES:
        return _on_compact(op, index)
    if op.name in RESHAPES:
        return _reshape(index, op.shape) if index.numel() else None
    node = op.node
    first = op.arguments[0]
    args = tuple(index if a is first else concrete(a) for a in node.args)
    kwargs = concrete(dict(node.kwargs))
    if isinstance(node.target, str):
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _reshape(index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """`index.reshape(shape)` that copies only along the axes where something varies."""
    small = compact(index)
    middle: list[int] = []  # `small`, with whole the groups of axes in which numbers vary
    final: list[int] = []
    for old, new in _groups(tuple(index.shape), shape):
        if all(small.shape[i] == 1 for i in old):
            middle += [1] * len(old)
            final += [1] * len(new)
        else:
            middle += [index.shape[i] for i in old]
            final += [shape[i] for i in new]
    return small.expand(middle).reshape(final).expand(shape)


def _groups(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[range, range]]:
    """Ranges of axes that a reshape turns into each other, as small as can be."""
    i = j = 0
    while i < len(old) or j < len(new):
        start, other = i, j
        left = right = 1
        while left != right or (i, j) == (start, other):
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield range(start, i), range(other, j)


def _on_compact(op: Op, index: torch.Tensor) -> torch.Tensor | None:
    """Shifts and reductions on the short form, where expanded axes do not matter."""
    small = compact(index)
    node = op.node
    if op.name == "pad" or op.name == "constant_pad_nd":
        return small.expand(op.shape) if tuple(index.shape) == op.shape else None
    kwargs = concrete({k: v for k, v in node.kwargs.items() if k != "dtype"})
    rest = concrete(node.args[1:])
    if op.name == "roll":
        result = torch.roll(small, *rest, **kwargs)
    else:
        dims = rest[0] if rest else kwargs.get("dim", tuple(range(small.dim())))
        keep = kwargs.get("keepdim", rest[1] if len(rest) > 1 else False)
        result = small.amax(dims, keepdim=keep)
    return result.expand(op.shape)
