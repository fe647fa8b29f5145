"""Verbs of single entries of a layer's weight and bias."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from ...anatomy.sites import Linear, Place
from ...sensitivity.sites import Entries
from .. import wiring
from .base import BoundSite


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
        """`y = layer(x)` becomes `y = branch(x, layer(x))`."""
        unit, node = self._call()
        name = self._layer.rpartition(".")[2]
        hint = str(node.meta.pop("hint", None) or name)
        x = node.args[0]
        assert isinstance(x, fx.Node)
        owners = tuple(p.owner for p in self.parts)
        stem = self.pass_name.replace(".", "_")
        (new,) = self.put(branch, unit, (x, node), (hint,), name=f"{name}_{stem}", owners=owners)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    def _call(self) -> tuple[str, fx.Node]:
        if self._linear is not None:
            place = self.editor.where(self._linear.call)
            return place.unit, self.editor.node(place)
        unit, calls = wiring.caller(self.editor, self._layer)
        if len(calls) > 1:
            raise self.unfit(f"'{self._layer}' runs {len(calls)} times")
        return unit, self.editor.node(Place(unit, calls[0].name))

    def refuse_twice(self) -> None:
        """Raises VR402 if the layer has the pass already."""
        unit, node = self._call()
        for user in node.users:
            if user.op == "call_module" and user.args[1:2] == (node,):
                module = self.editor.unit(unit).get_submodule(str(user.target))
                if getattr(module, "inserted_by", None) == self.pass_name:
                    raise self.clause.error("VR402", f"'{self.role}' has {self.pass_name} already")

    def fold(self, updates: list[torch.Tensor]) -> None:
        """At lowering: adds each part's values to its entries, and drops the branch."""
        for part, values in zip(self.parts, updates, strict=True):
            owner = self.editor.root.get_submodule(part.module)
            old = owner._parameters[part.kind]
            assert old is not None
            folded = old.detach().to(torch.float32, copy=True).flatten()
            folded[part.positions.to(folded.device)] += values.detach().to(torch.float32)
            new = nn.Parameter(folded.view_as(old).to(old.dtype), requires_grad=False)
            owner._parameters[part.kind] = new
        self.drop()
