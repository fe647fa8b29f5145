"""How the samples of a batch lie in a value: along which axis, alone or with their rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..anatomy.flow import Flow, Op, flatten
from ..anatomy.rows import compact, positions_of
from ..anatomy.sites import Place
from ..tracing import inputs
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
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = duplicate(root, lambda p: p, lambda b: b)  # templates are never changed

    @cached_property
    def runs(self) -> tuple[Propagation, Propagation]:
        """The model on a batch of one and on a batch of two."""
        root = on_meta(self.root)
        first = Propagation(root, self._example(1))
        return first, Propagation(root, self._example(2), first)

    def _example(self, count: int) -> tuple[torch.Tensor, ...]:
        known = self.root.__dict__["example"]
        args, kwargs = inputs.as_arguments(known)
        batch = inputs.batch_of(known)
        return tuple(
            torch.empty([count if n == batch and i == 0 else n for i, n in enumerate(v.shape)],
                        dtype=v.dtype, device="meta")
            for v in (*args, *kwargs.values())
        )  # fmt: skip

    @cached_property
    def flow(self) -> Flow:
        """Its dataflow."""
        return flatten(self.root)

    @cached_property
    def ops(self) -> dict[Place, Op]:
        """The tensors of the dataflow by place."""
        return {Place(op.frame.path, op.node.name): op for op in self.flow.ops}

    def at(self, place: Place) -> Samples | None:
        """How the samples lie at a place, or None if they cannot be told apart there."""
        one, two = (run.shape(place) for run in self.runs)
        if one is None or two is None or len(one) != len(two):
            return None
        axes = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        if len(axes) != 1:
            return None
        (axis,) = axes
        if one[axis] == 1:
            return Samples(axis, "alone")
        op = self.ops.get(place)
        order = None if op is None else self._order(op, axis)
        return None if order is None else Samples(axis, order)

    def _order(self, op: Op, axis: int) -> str | None:
        """Found by sending the number of the sample from the input to `op`."""
        for image in self.flow.images:
            count = image.shape[0]
            number = torch.arange(count, device="cpu").view(-1, *(1 for _ in image.shape[1:]))
            found = positions_of(op, image, number.expand(image.shape))
            if found is None or not isinstance(found.index, torch.Tensor):
                continue
            rows = compact(found.index)
            length = op.shape[axis]
            if rows.numel() != length or rows.shape[axis] != length:
                continue
            steps = torch.arange(length, device="cpu")
            if torch.equal(rows.flatten(), steps // (length // count)):
                return "together"
            if torch.equal(rows.flatten(), steps % count):
                return "apart"
        return None
