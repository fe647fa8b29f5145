"""Layers of the form `weight * f(x) + bias`: what stands behind them, and folds into both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..editing.folds import Fold
from . import folding
from .context import Drops
from .weighted import WeightedSite


@dataclass(frozen=True, eq=False)
class AffineSite(WeightedSite):
    """A linear layer, a convolution or a norm, or some of the channels that it yields."""

    @property
    def ranges(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The half-open ranges of channels of each part, in what the layer yields."""
        raise NotImplementedError

    @property
    def out_features(self) -> int:
        """Channels that the layer yields."""
        raise NotImplementedError

    @property
    def is_whole(self) -> bool:
        """Whether it is all that the layer yields, as one part."""
        return self.ranges == (((0, self.out_features),),)

    @property
    def axis(self) -> int:
        """The axis of the channels in what the layer yields."""
        raise NotImplementedError

    @property
    def _weight(self) -> str:
        """The name of its weight."""
        return f"{self._layer}.weight"

    @property
    def _taken(self) -> list[tuple[int, int]]:
        return [piece for found in self.ranges for piece in found]

    @property
    def _pieces(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """The rows of each part in the weight."""
        return self.ranges

    def after(self, module: nn.Module) -> None:
        """`y = layer(x)` becomes `y = module(layer(x))`, wherever the layer is called.

        It stands behind all that is beside the layer, such as updates of the weight, whatever the
        order of the clauses; but one that folds stands before those that do not.

        Raises:
            RewriteError: VR410 if a unit calls the layer that does not hold it.
        """
        if self.axis != getattr(module, "axis", -1):
            raise self.unfit(f"it works on the last axis, and channels lie on axis {self.axis}")
        self._stand(module, Drops(), behind=True)
        self.expect_fold()
        if self.context.folds and self._affine is None:
            self.waive("lowers_exactly", "the layer has no scale and shift of its own")

    def fold(
        self,
        add: Sequence[torch.Tensor] = (),
        *,
        scale: Sequence[torch.Tensor] = (),
        shift: Sequence[torch.Tensor] = (),
    ) -> bool:
        """At lowering: changes each part's rows of weight and bias, and drops the module.

        `W` becomes `scale * W + add`, the bias `scale * b + shift`, in float32 or better. A layer
        of torch without bias gets one.

        Args:
            add: of each part, shaped like its rows of the weight.
            scale: of each part, a number for each row.
            shift: of each part, a number for each row.

        Returns:
            Whether it could; see `foldable`.
        """
        bias = self._affine if scale or shift else None
        if not self.foldable or ((scale or shift) and bias is None):
            return False
        factors = self.factors
        before, names = self._applied(), (self._weight, *([bias] if bias else []))
        for name, added in zip(names, (add, shift), strict=False):
            self._replace(name, scale, added)
        fold = Fold(self.insertion, names, before, self._applied(), factors, shifts=bool(shift))
        self.editor.folds.append(fold)
        self.drop()
        return True

    @property
    def _affine(self) -> str | None:
        """The name of the bias if every call is `weight * f(x) + bias`; it may be yet to make."""
        found = {folding.bias_of(self.editor, call, self._layer) for call in self._calls}
        return found.pop() if len(found) == 1 else None

    def _applied(self) -> nn.Module:
        """What the layer does to one position, as a layer on the same memory."""
        raise NotImplementedError

    @property
    def _numbers(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Its weight and its bias."""
        weight = self.editor.root.get_parameter(self._weight)
        owner, _, last = (self._affine or "").rpartition(".")
        found = self.editor.root.get_submodule(owner)._parameters.get(last) if last else None
        return weight, found

    def _replace(
        self, name: str, scale: Sequence[torch.Tensor], add: Sequence[torch.Tensor]
    ) -> None:
        """Puts a new parameter in the place of one, rows of it multiplied and added to."""
        new = self._wide(name)
        for number, rows in enumerate(self._pieces):
            factors = scale[number] if scale else None
            folding.change(new, rows, factors, add[number] if add else None)
        self._set(name, new)

    def _wide(self, name: str) -> torch.Tensor:
        """A copy of a parameter in float32 or better; zeros for a bias that is yet to make."""
        owner, _, last = name.rpartition(".")
        old = self.editor.root.get_submodule(owner)._parameters[last]
        if old is None:
            weight = self.editor.root.get_parameter(self._weight)
            old = nn.Parameter(weight.new_zeros(weight.shape[0]))
        return old.detach().to(torch.promote_types(old.dtype, torch.float32), copy=True)

    def _set(self, name: str, new: torch.Tensor) -> None:
        """Puts a frozen parameter in the place of one, in the dtype of the weight."""
        owner, _, last = name.rpartition(".")
        layer = self.editor.root.get_submodule(owner)
        old = layer._parameters[last]
        dtype = self.editor.root.get_parameter(self._weight).dtype if old is None else old.dtype
        setattr(layer, last, nn.Parameter(new.to(dtype), requires_grad=False))
