"""Verbs of linear layers and of rows of fused ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..anatomy.sites import Linear, Place
from ..editing import branches
from ..editing.editor import Fold
from .base import BoundSite
from .context import Drops


@dataclass(frozen=True, eq=False)
class LinearSite(BoundSite):
    """A linear layer, or some row ranges of a fused one, that a clause adapts at once.

    Attributes:
        parts: the selected matrices, all rows of one weight, in row order.
    """

    parts: tuple[Linear, ...]

    @property
    def role(self) -> str:
        """The sites in words."""
        return ", ".join(p.role for p in self.parts)

    @property
    def path(self) -> str:
        """The module that holds the layer."""
        return self._layer.rpartition(".")[0]

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.parts[0].in_features

    @property
    def ranges(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The half-open ranges of each part, in the rows that the call applies.

        A part has more than one where heads take turns: q of every head before k of the next.
        """
        return tuple(
            tuple((first - p.offset, last - p.offset) for first, last in p.ranges)
            for p in self.parts
        )

    @property
    def has_gaps(self) -> bool:
        """Whether a part has more than one range."""
        return any(part.pieces for part in self.parts)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """The half-open range of each part, for passes that take one.

        Raises:
            RewriteError: VR410 if the rows of a part have gaps.
        """
        if self.has_gaps:
            raise self.unfit("its rows have gaps, as q, k and v of the heads take turns")
        return tuple(found[0] for found in self.ranges)

    @property
    def axis(self) -> int:
        """The axis of the features in what goes in and out: -1, or 1 for a 1x1 convolution."""
        return self.parts[0].axis

    @property
    def _taken(self) -> list[tuple[int, int]]:
        return [piece for found in self.ranges for piece in found]

    @property
    def weight(self) -> nn.Parameter:
        """The weight of the whole layer, [out_features, in_features] and a convolution's 1s."""
        return self.editor.root.get_parameter(self.parts[0].weight)

    @property
    def like(self) -> torch.Tensor:
        """The weight, or a tensor near it if it is no floating one."""
        return self.weight if self.weight.is_floating_point() else super().like

    @property
    def out_features(self) -> int:
        """Number of rows of the whole layer."""
        return int(self.weight.shape[0])

    @property
    def _layer(self) -> str:
        weight = self.parts[0].weight
        # A matrix that is no layer's, such as `in_proj_weight`, is named by its part.
        return weight.removesuffix(".weight") if weight.endswith(".weight") else self.parts[0].path

    def parallel(self, branch: nn.Module, *, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        """`y = linear(x)` becomes `y = branch(x, linear(x))`, wherever the layer is called.

        Args:
            branch: what is put in.
            dropout: of the branch's x, in training; layers that read the same x share the draw.
            drop_path: of what the branch adds, by sample, in training. With it the branch is called
                as `branch(x, y, keep)`, and multiplies what it adds by `keep`, whose axes are those
                of x, with length 1 where no samples lie.

        Raises:
            RewriteError: VR402 if the pass is there already, VR410 if a unit calls the layer that
                does not hold it, VR413 if `drop_path` finds no samples.
        """
        if self.axis != getattr(branch, "axis", -1):
            raise self.unfit("it works on the last axis, and the layer is a 1x1 convolution")
        for place in self._calls:
            self._refuse_rows(place)
        name = self._layer.rpartition(".")[2]
        name = f"linear{name}" if name.isdigit() else name
        self.beside(
            branch, self._calls, name, tuple(p.path for p in self.parts), Drops(dropout, drop_path)
        )
        self.expect_fold(self.editor.root.get_submodule(self.parts[0].weight.rpartition(".")[0]))

    @property
    def _calls(self) -> list[Place]:
        """All calls that apply the rows that the site is some of."""
        first = self.parts[0]
        known = self.context.anatomy.calls.get((first.weight, first.offset), (first.call,))
        return [self.editor.where(call) for call in known]

    def _refuse_rows(self, place: Place) -> None:
        node, unit = self.editor.node(place), self.editor.unit(place.unit)
        for call in branches.chain(self.editor, place.unit, node):
            branch = unit.get_submodule(str(call.target))
            if getattr(branch, "inserted_by", None) != self.pass_name:
                continue
            taken = set(getattr(branch, "rows", ()) or [(0, self.out_features)])
            if any(start < b and a < stop for start, stop in self._taken for a, b in taken):
                raise self.clause.error(
                    "VR402",
                    f"'{self.role}' has {self.pass_name} already",
                    suggestion="apply it to a model that was not rewritten, or lower that first",
                )

    def fold(self, updates: Sequence[torch.Tensor]) -> bool:
        """At lowering: adds each part's update to its rows of the weight, and drops the branch.

        The sum is made in float32 or better.

        Returns:
            Whether it could; see `foldable`.
        """
        owner, _, name = self.parts[0].weight.rpartition(".")
        layer = self.editor.root.get_submodule(owner)
        if not self.foldable(layer, self._calls, self._taken):
            return False
        weight = layer._parameters[name]
        assert weight is not None
        wide = torch.promote_types(weight.dtype, torch.float32)
        folded = weight.detach().to(wide, copy=True)
        for part, update in zip(self.parts, updates, strict=True):
            first = 0
            for start, stop in part.ranges:
                piece = update[first : first + stop - start].detach().to(wide)
                folded[start:stop] += piece.view_as(folded[start:stop])
                first += stop - start
        new = nn.Parameter(folded.to(weight.dtype), requires_grad=False)
        setattr(layer, name, new)
        pair = (_applied(self.parts[0], matrix) for matrix in (weight, new))
        self.editor.folds.append(Fold(self.insertion, (self.parts[0].weight,), *pair))
        self.drop()
        return True


def _applied(part: Linear, weight: nn.Parameter) -> nn.Linear:
    """What the call of a site multiplies with, as a layer on the same memory."""
    matrix = weight.detach()[part.offset :].flatten(1)  # also of a convolution
    rows = nn.Parameter(matrix, requires_grad=False)
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
    layer.weight = rows
    return layer
