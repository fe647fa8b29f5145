"""How the samples of a batch lie in a value: along which axis, alone or with their rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..anatomy.flow import Flow, Op, flatten
from ..anatomy.rows import collapsed, positions_of
from ..anatomy.sites import Place
from ..tracing import inputs
from ..tracing.about import about
from ..tracing.unit import duplicate, on_meta
from .measure import Propagation


@dataclass(frozen=True)
class Samples:
    """Where the samples of a batch are in a value.

    Attributes:
        axis: along which they lie.
        order: "alone" if that axis has one row for each. Else it has several, such as the windows
            of an image, which are "together", or "apart" if those of all samples take turns.
    """

    axis: int
    order: str


class Batches:
    """Tells of any place of a model how samples lie there.

    Args:
        root: a captured tree; what is done to it later does not count.
        known: a run of it, on whatever batch.
    """

    def __init__(self, root: nn.Module, known: Propagation | None = None) -> None:
        self.root = duplicate(root, lambda p: p, lambda b: b)  # templates are never changed
        self.known = known

    @cached_property
    def runs(self) -> tuple[Propagation, Propagation]:
        """The model on a batch of one and on a batch of two."""
        root = on_meta(self.root)
        first = Propagation(root, self._example(1), self.known)
        return first, Propagation(root, self._example(2), first)

    def _example(self, count: int) -> tuple[torch.Tensor, ...]:
        known = about(self.root).example
        args, kwargs = inputs.as_arguments(known)
        batch = inputs.batch_of(known)
        return tuple(
            torch.empty(
                [count if n == batch and i == 0 else n for i, n in enumerate(v.shape)],
                dtype=v.dtype,
                device="meta",
            )
            for v in (*args, *kwargs.values())
        )

    @cached_property
    def flow(self) -> Flow:
        """Its dataflow."""
        return flatten(self.root)

    @cached_property
    def ops(self) -> dict[Place, Op]:
        """The tensors of the dataflow by place."""
        return {_place(op): op for op in self.flow.ops}

    def at(self, place: Place) -> Samples | None:
        """How the samples lie at a place, or None if they cannot be told apart there."""
        axis, rows = self._axis(place)
        if axis is None or rows == 1:
            return None if axis is None else Samples(axis, "alone")
        op = self.ops.get(place)
        order = None if op is None else self._order(op, axis)
        return None if order is None else Samples(axis, order)

    def same(self, place: Place) -> bool:
        """Whether a value is as large for any number of samples, or no tensor."""
        one, two = (run.shape(place) for run in self.runs)
        return one == two

    def _axis(self, place: Place) -> tuple[int | None, int]:
        """The one axis that is longer for more samples, and how many rows each has."""
        one, two = (run.shape(place) for run in self.runs)
        if one is None or two is None or len(one) != len(two):
            return None, 0
        axes = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        return (axes[0], one[axes[0]]) if len(axes) == 1 else (None, 0)

    def _order(self, op: Op, axis: int) -> str | None:
        """Found by sending the numbers of samples to `op`, from where they last were alone."""
        for source in reversed(list(self.flow.members(op.before))):
            alone, rows = self._axis(_place(source))
            if alone is None or rows != 1 or not source.shape:
                continue
            lengths = [n if i == alone else 1 for i, n in enumerate(source.shape)]
            number = torch.arange(source.shape[alone], device="cpu").view(lengths)
            found = positions_of(op, source, number.expand(source.shape))
            if found is not None and isinstance(found.index, torch.Tensor):
                return _pattern(collapsed(found.index), axis, op.shape[axis])
        return None


def _pattern(rows: torch.Tensor, axis: int, length: int) -> str | None:
    """The order of the numbers 0, 1, ... that stand along an axis, each several times."""
    if rows.numel() != length or rows.shape[axis] != length:
        return None
    count, steps = int(rows.max()) + 1, torch.arange(length, device="cpu")
    if torch.equal(rows.flatten(), steps // (length // count)):
        return "together"
    return "apart" if torch.equal(rows.flatten(), steps % count) else None


def _place(op: Op) -> Place:
    return Place(op.frame.path, op.node.name)
