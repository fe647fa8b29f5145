"""Verbs of linear layers and of rows of fused ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ..anatomy.sites import Attention, Block, Linear, Place
from ..editing import readers
from ..editing import stitching as stitched
from ..editing.value import Value
from . import folding
from .context import Context, Drops
from .feeding import FedSite

if TYPE_CHECKING:
    from .block import BlockSite


@dataclass(frozen=True, eq=False)
class LinearSite(FedSite):
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
    def names(self) -> tuple[str, ...]:
        """What each part is in its attention or feed-forward part: `q`, `proj`, `fc1`."""
        return tuple(part.role.rpartition(".")[2] for part in self.parts)

    @property
    def block(self) -> BlockSite:
        """The block that it lies in.

        Raises:
            RewriteError: VR410 if it lies in none.
        """
        weight = self.parts[0].weight
        for block in self.context.anatomy.blocks:
            if any(linear.weight == weight for linear in block.linears):
                return self._site_of(block)
        raise self.unfit("it lies in no block")

    @property
    def blocks(self) -> tuple[BlockSite, ...]:
        """The blocks that hold sites of the clause."""
        return tuple(
            self._site_of(block)
            for block in self.context.anatomy.blocks
            if any(role.startswith(f"{block.role}.") for role in self.siblings)
        )

    @property
    def stitches(self) -> tuple[int, ...]:
        """Numbers of the stitches that run it, first that of its model by itself.

        Raises:
            RewriteError: VR535 if it lies in no block of a model that is stitched.
        """
        for name, anatomy in self.context.bases.items():
            for index, block in enumerate(anatomy.blocks):
                if any(linear.weight == self._weight for linear in block.linears):
                    return stitched.numbers(self.editor, name, index)
        raise self.clause.error(
            "VR535",
            f"{self.pass_name}: no stitch runs '{self.role}'",
            suggestion="name linear layers of the blocks of models that are stitched",
        )

    def _site_of(self, block: Block) -> BlockSite:
        from .block import BlockSite

        return BlockSite(self.context, block)

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

    def parallel(
        self,
        branch: nn.Module,
        *given: Value,
        through: Value | None = None,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """`y = linear(x)` becomes `y = branch(x, linear(x), *given)`, wherever it is called.

        Args:
            branch: what is put in.
            given: values made elsewhere, such as those of `tied`, that it is called with besides.
            through: a factor [r, d] that x is multiplied with before, d channels at a time, so
                that the branch gets [..., r] for each d; layers that read the same x share it.
            dropout: of the branch's x, in training; layers that read the same x share the draw.
            drop_path: of what the branch adds, by sample, in training. With it the branch is called
                as `branch(x, y, keep, *given)`, and multiplies what it adds by `keep`, whose axes
                are those of x, with length 1 where no samples lie.

        Raises:
            RewriteError: VR402 if the pass is there already, VR410 if a unit calls the layer that
                does not hold it, VR413 if `drop_path` finds no samples.
        """
        if self.axis != getattr(branch, "axis", -1):
            raise self.unfit("it works on the last axis, and the layer is a 1x1 convolution")
        self.refuse_twice()
        self._stand(branch, Drops(dropout, drop_path), given=given, through=through)
        self.expect_fold()

    def before(self, module: nn.Module) -> None:
        """`y = linear(x)` becomes `y = linear(module(x))`, of all rows: see `FedSite.before`."""
        first = self.parts[0]
        starts = [n for weight, n in self.context.anatomy.calls if weight == first.weight]
        end = min((n for n in starts if n > first.offset), default=self.out_features)
        if sum(b - a for found in self.ranges for a, b in found) < end - first.offset:
            raise self.unfit(
                f"the layer makes other rows of the same input, and '{self.pass_name}' changes "
                "what it reads",
                suggestion=f"name the whole layer, '{self._layer}'",
            )
        super().before(module)

    def _expect_one_source(self) -> None:
        """Queries, keys and values have to be made of one value.

        Raises:
            RewriteError: VR410 if they are not, as in cross-attention.
        """
        roles = (site for _, site in self.context.anatomy.roles() if isinstance(site, Attention))
        for attn in roles:
            made = [m for m in (attn.q, attn.k, attn.v) if m is not None]
            if any(part in (*made, attn.qkv) for part in self.parts):
                sources = {m.role: self._source(m.call) for m in made}
                if len(set(sources.values())) > 1:
                    raise self.unfit(
                        f"the queries, keys and values of '{attn.role}' are not made of one value"
                    )

    def _source(self, call: Place) -> Place:
        """What a layer reads, before it is rearranged and changed by passes."""
        place = self.editor.where(call)
        x = self.editor.node(place).args[0]
        assert isinstance(x, fx.Node)
        found = readers.origin(self.editor, place.unit, x, ())
        return Place(found.unit, found.node.name)

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
