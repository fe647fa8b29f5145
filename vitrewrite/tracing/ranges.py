"""Indices beyond a table: no error on meta, so they are looked at where they are known."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from .frame import Frame

_WITH_DIM = {
    "index_select", "gather", "take_along_dim", torch.index_select, torch.gather,
    torch.take_along_dim,
}  # fmt: skip
INDEXING = {operator.getitem, operator.setitem, F.embedding, "take", torch.take, *_WITH_DIM}
"""Operations that have indices."""


def check_indices(frame: Frame, target: Any, arguments: Any, what: str) -> None:
    """Drops the witnesses under which an index of an operation is out of range.

    Args:
        frame: where it is recorded.
        target: the operation.
        arguments: its arguments and keywords.
        what: the operation in words.
    """
    values, known = frame.recorder.values, frame.recorder.known
    for table, dim, index in _indexed(target, *arguments):
        for number in sorted(known.deps(index) - set(values.dead)):
            answer = known.answer(frame, index)
            found = None if answer is None else answer.witnesses[number]
            held = values.all(table)[number + 1]
            if found is None or held is None or not found.numel():
                continue
            length = held.shape[dim] if dim is not None else held.numel()
            if int(found.max()) >= length or int(found.min()) < -length:
                values.kill(number, f"{what}: index {int(found.max())} of {length}")


Indexed = tuple[torch.Tensor, int | None, torch.Tensor]


def _indexed(target: Any, args: Any, kwargs: Any) -> Iterator[Indexed]:
    """The tensors that are indexed, the dimension (None is all), and the indices."""
    if target in (operator.getitem, operator.setitem):
        yield from _subscripts(args[0], args[1])
    elif target is F.embedding and len(args) >= 2:
        yield from _integers(args[1], 0, args[0])
    elif target in _WITH_DIM and len(args) >= 3 and isinstance(args[1], int):
        yield from _integers(args[0], args[1], args[2])
    elif target in ("take", torch.take) and len(args) == 2:
        yield from _integers(args[0], None, args[1])


def _subscripts(table: torch.Tensor, index: Any) -> Iterator[Indexed]:
    parts = list(index) if isinstance(index, tuple) else [index]
    consumed = [0 if p is None or p is ... else _rank(p) for p in parts]
    dim = 0
    for part, rank in zip(parts, consumed, strict=True):
        if part is ...:
            dim += table.dim() - sum(consumed)
            continue
        yield from _integers(table, dim, part)
        dim += rank


def _rank(part: Any) -> int:
    mask = isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8)
    return part.dim() if mask else 1


def _integers(table: Any, dim: int | None, index: Any) -> Iterator[Indexed]:
    whole = isinstance(index, torch.Tensor) and not (
        index.is_floating_point() or index.dtype is torch.bool
    )
    if whole and isinstance(table, torch.Tensor):
        yield table, dim, index
