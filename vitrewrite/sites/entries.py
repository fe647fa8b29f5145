"""Verbs of single entries of a layer's weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..anatomy.entries import Entries
from ..anatomy.sites import Linear, Place
from ..editing import branches
from ..editing.editor import Fold
from ..tracing.unit import duplicate
from .base import BoundSite
from .context import Drops


@dataclass(frozen=True, eq=False)
class EntriesSite(BoundSite):
    """Entries of one linear layer or norm that a clause trains.

    Attributes:
        parts: the entries, by matrix or vector.
    """

    parts: tuple[Entries, ...]

    @property
    def role(self) -> str:
        """The sites in words."""
        return ", ".join(p.role for p in self.parts)

    @property
    def path(self) -> str:
        """The module that holds the layer."""
        return self._layer.rpartition(".")[0]

    @property
    def layer(self) -> nn.Module:
        """The layer itself."""
        return self.editor.root.get_submodule(self._layer)

    @property
    def like(self) -> torch.Tensor:
        """The weight of the layer."""
        weight = self.layer.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def _layer(self) -> str:
        return self.parts[0].module

    @property
    def is_linear(self) -> bool:
        """Whether the layer is linear; else it is a norm."""
        return self._linear is not None

    @property
    def _linear(self) -> Linear | None:
        return next((p.layer for p in self.parts if p.layer is not None), None)

    def parallel(self, branch: nn.Module) -> None:
        """`y = layer(x)` becomes `y = branch(x, layer(x))`, wherever the layer is called."""
        name = self._layer.rpartition(".")[2]
        name = f"layer{name}" if name.isdigit() else name
        self.beside(branch, self._calls, name, tuple(p.owner for p in self.parts), Drops())
        self.expect_fold(self.layer)

    @property
    def _calls(self) -> list[Place]:
        """All calls of the layer."""
        first = 0 if self._linear is None else self._linear.offset
        known = self.context.anatomy.calls.get((f"{self._layer}.weight", first))
        if known is None:
            raise self.unfit(f"nothing calls '{self._layer}'")
        return [self.editor.where(call) for call in known]

    def refuse_twice(self) -> None:
        """Raises VR402 if the layer has the pass already."""
        for place in self._calls:
            node, unit = self.editor.node(place), self.editor.unit(place.unit)
            calls = branches.chain(self.editor, place.unit, node)
            modules = (unit.get_submodule(str(n.target)) for n in calls)
            if any(getattr(m, "inserted_by", None) == self.pass_name for m in modules):
                raise self.clause.error("VR402", f"'{self.role}' has {self.pass_name} already")

    def fold(self, updates: list[torch.Tensor]) -> bool:
        """At lowering: adds each part's values to its entries, and drops the branch.

        Returns:
            Whether it could; see `foldable`.
        """
        if not self.foldable(self.layer, self._calls, self._rows):
            return False
        before = _same(self.layer)
        for part, values in zip(self.parts, updates, strict=True):
            old = self.layer._parameters[part.kind]
            assert old is not None
            wide = torch.promote_types(old.dtype, torch.float32)
            folded = old.detach().to(wide, copy=True).flatten()
            folded[part.positions.to(folded.device)] += values.detach().to(wide)
            new = nn.Parameter(folded.view_as(old).to(old.dtype), requires_grad=False)
            self.layer._parameters[part.kind] = new
        names = tuple(dict.fromkeys(p.parameter for p in self.parts))
        self.editor.folds.append(Fold(self.insertion, names, before, _same(self.layer)))
        self.drop()
        return True

    @property
    def _rows(self) -> tuple[tuple[int, int], ...]:
        """The rows of the layer that the entries lie in, q, k or v of a fused one at a time."""
        whole = (0, self.layer.get_parameter(self.parts[0].kind).shape[0])
        return tuple((p.layer.rows if p.layer else None) or whole for p in self.parts)


def _same(layer: nn.Module) -> nn.Module:
    """The layer as it is now, on the same memory."""
    return duplicate(layer, lambda p: p, lambda b: b)
