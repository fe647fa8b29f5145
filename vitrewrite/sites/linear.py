"""Verbs of linear layers and of rows of fused ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..anatomy.sites import Linear, Place
from ..editing import branches
from ..editing.editor import Fold, relative
from ..tracing.notes import HINT
from . import folding
from .affine import AffineSite
from .context import Context, Drops


@dataclass(frozen=True, eq=False)
class LinearSite(AffineSite):
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
    def projects_heads(self) -> bool:
        """Whether it is the `proj` of an attention: the layer behind its heads."""
        return all(part.role.endswith("attn.proj") for part in self.parts)

    @property
    def ends_mlp(self) -> bool:
        """Whether it is the `fc2` of a feed-forward part: the layer behind its hidden units."""
        return all(part.role.endswith(".fc2") for part in self.parts)

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
    def weight(self) -> nn.Parameter:
        """The weight of the whole layer, [out_features, in_features] and a convolution's 1s."""
        return self.editor.root.get_parameter(self._weight)

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

    @property
    def _weight(self) -> str:
        return self.parts[0].weight

    @property
    def _name(self) -> str:
        name = self._layer.rpartition(".")[2]
        return f"linear{name}" if name.isdigit() else name

    @property
    def _owners(self) -> tuple[str, ...]:
        return tuple(p.path for p in self.parts)

    @property
    def _pieces(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        return tuple(p.ranges for p in self.parts)

    @property
    def _calls(self) -> list[Place]:
        """All calls that apply the rows that the site is some of."""
        first = self.parts[0]
        known = self.context.anatomy.calls.get((first.weight, first.offset), (first.call,))
        return self.editor.calls(known)

    # -- verbs ----------------------------------------------------------------------------------

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
        self.refuse_twice()
        self._stand(branch, Drops(dropout, drop_path))
        self.expect_fold()

    def before(self, module: nn.Module) -> None:
        """`y = linear(x)` becomes `y = linear(module(x))`, wherever the layer is called.

        What stands beside the layer by then is given `module(x)` too; other readers of x are not.

        Raises:
            RewriteError: VR410 if a unit calls the layer that does not hold it.
        """
        self._check_inside()
        path = ""
        for place in self._calls:
            layer = self.editor.node(place)
            x = layer.args[0]
            assert isinstance(x, fx.Node)
            beside = [c for c in branches.chain(self.editor, place.unit, layer) if len(c.args) > 1]
            if any(call.args[0] is not x for call in beside):
                raise self.unfit("what is beside it reads its input through a dropout")
            hint = str(HINT.get(x) or "x")
            if path:
                target, origin = relative(path, place.unit), self.clause.origin
                (new,) = self.editor.call(place.unit, target, [x], origin=origin, hints=(hint,))
            else:
                name = f"{self._name}_{self._stem}"
                (new,) = self.put(
                    module, place.unit, [x], (hint,), name=name, owners=self._owners, changed=(0,),
                    folds=self.context.folds,
                )  # fmt: skip
                path = self.editor.insertions[-1].path
            for call in (layer, *beside):
                call.replace_input_with(x, new)

    def fold_columns(self, factors: torch.Tensor) -> bool:
        """At lowering: `W (factors * x)` becomes the layer, and the module in front of it goes.

        Args:
            factors: one for each channel that the layer reads.

        Returns:
            Whether it could: not if anything but the layer reads what the module yields.
        """
        layers = {self.editor.node(call) for call in self._calls}
        readers = {user for _, call in self.calls_of(self.insertion) for user in call.users}
        if readers != layers or self.editor.holders(self._owner) > 1:
            return False
        before, last = self._applied(), self._weight.rpartition(".")[2]
        wide = self.weight.detach().to(torch.promote_types(self.weight.dtype, torch.float32))
        made = wide * factors.detach().to(wide).view(1, -1, *[1] * (wide.dim() - 2))
        setattr(self._owner, last, nn.Parameter(made.to(self.weight.dtype), requires_grad=False))
        self.editor.folds.append(Fold(self.insertion, (self._weight,), before, self._applied()))
        self.drop()
        return True

    @property
    def _owner(self) -> nn.Module:
        return self.editor.root.get_submodule(self._weight.rpartition(".")[0])

    def _applied(self) -> nn.Module:
        weight, bias = self._numbers
        return folding.matrix(weight[self.parts[0].offset :], bias)

    @classmethod
    def bind(cls, context: Context, sites: Sequence[Any]) -> list[LinearSite]:
        """Rows of one layer come together, in order."""
        groups: dict[Any, list[Linear]] = {}
        for site in sites:
            unit = context.editor.unit(site.call.unit)  # the same for blocks that are one module
            weight = context.editor.root.get_parameter(site.weight)
            same = groups.setdefault((id(unit), id(weight), site.offset), [])
            if all(other.ranges != site.ranges for other in same):
                same.append(site)
        in_order = (tuple(sorted(g, key=lambda s: s.ranges)) for g in groups.values())
        return [cls(context, parts) for parts in in_order]
