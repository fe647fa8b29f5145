"""Verbs of single entries of a layer's weight and bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..anatomy.entries import Entries
from ..anatomy.sites import Linear, Place
from ..editing.folds import Fold
from ..tracing.unit import duplicate
from .context import Context, Drops
from .weighted import WeightedSite


@dataclass(frozen=True, eq=False)
class EntriesSite(WeightedSite):
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
    def eps(self) -> float | None:
        """What is added to the variance by a norm; None of a linear layer."""
        layer: Any = self.layer
        return None if self._linear is not None else float(layer.eps)

    @property
    def _linear(self) -> Linear | None:
        return next((p.layer for p in self.parts if p.layer is not None), None)

    def parallel(self, branch: nn.Module) -> None:
        """`y = layer(x)` becomes `y = branch(x, layer(x))`, wherever the layer is called."""
        self._stand(branch, Drops())
        self.expect_fold()

    @property
    def _owners(self) -> tuple[str, ...]:
        return tuple(p.owner for p in self.parts)

    @property
    def _calls(self) -> list[Place]:
        """All calls of the layer."""
        first = 0 if self._linear is None else self._linear.offset
        known = self.context.anatomy.calls.get((f"{self._layer}.weight", first))
        if known is None:
            raise self.unfit(f"nothing calls '{self._layer}'")
        return self.editor.calls(known)

    @property
    def _taken(self) -> list[tuple[int, int]]:
        """The rows of the layer that the entries lie in, q, k or v of a fused one at a time."""
        whole = (0, self.layer.get_parameter(self.parts[0].kind).shape[0])
        return [(p.layer.rows if p.layer else None) or whole for p in self.parts]

    def fold(self, updates: list[torch.Tensor]) -> bool:
        """At lowering: adds each part's values to its entries, and drops the branch.

        Returns:
            Whether it could; see `foldable`.
        """
        if not self.foldable:
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

    @classmethod
    def bind(cls, context: Context, sites: Sequence[Any]) -> list[EntriesSite]:
        """Entries of one layer come together."""
        layers: dict[str, list[Entries]] = {}
        for site in sites:
            layers.setdefault(site.module, []).append(site)
        return [cls(context, tuple(parts)) for parts in layers.values()]


def _same(layer: nn.Module) -> nn.Module:
    """The layer as it is now, on the same memory."""
    return duplicate(layer, lambda p: p, lambda b: b)
