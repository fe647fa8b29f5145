"""What lowering did: what went into weights, and what became of each inserted module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..text import Told
from .branches import is_ahead, is_behind
from .editor import Insertion
from .projection import project


@dataclass(frozen=True, eq=False)
class Fold(Told):
    """What stood at a layer and went into the layer's weights at lowering.

    Attributes:
        insertion: the module, beside the layer, behind it or in front of it.
        names: the parameters that took it.
        before: the layer without it.
        after: the layer with it, sharing its weights with the lowered model.
        factors: what x is multiplied with before a module beside the layer gets it, if it is, and
            what such a module is called with besides x and y.
        shifts: whether the bias takes numbers of its own, and not only factors.
    """

    insertion: Insertion
    names: tuple[str, ...]
    before: nn.Module
    after: nn.Module
    factors: tuple[torch.Tensor, ...] = ()
    shifts: bool = False

    @property
    def moved(self) -> tuple[str, ...]:
        """The parameters that, trained, could take the place of the module: not a scaled bias."""
        return self.names if self.shifts else self.names[:1]

    def unfolded(self, layer: nn.Module, module: nn.Module, x: torch.Tensor) -> object:
        """What copies of the layer and of the module yield together."""
        if is_ahead(module):
            return layer(module(x))
        y = layer(x)
        if is_behind(module):
            return module(y)
        given = [factor.to(x.dtype) for factor in self.factors]
        if self.insertion.through is not None:
            x = project(x, given.pop(0))
        return module(x, y, *given)


@dataclass(frozen=True, eq=False)
class Lowered(Told):
    """What became of an inserted module at lowering.

    Attributes:
        insertion: the module as it was.
        folds: where it went, if into weights.
        made: the modules that took its place.
    """

    insertion: Insertion
    folds: tuple[Fold, ...]
    made: tuple[Insertion, ...]
