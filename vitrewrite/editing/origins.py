"""What initial values are made of, where they are made of the model's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ..anatomy.sites import Anatomy

_T = TypeVar("_T")


@dataclass(frozen=True)
class OwnLayer:
    """The tensors of a layer, or of some rows of one.

    Attributes:
        weight: the name of the parameter.
        bias: that of the bias, if there is one.
        ranges: which rows of both; all of them if there are none.
    """

    weight: str
    bias: str | None
    ranges: tuple[tuple[int, int], ...] = ()

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its rows of a tensor that is like the parameter."""
        pieces = [tensor[start:stop] for start, stop in self.ranges]
        return torch.cat(pieces) if pieces else tensor


@dataclass(frozen=True, eq=False)
class OwnLayers:
    """Layers of the model as it was, by role, and what was measured of them.

    Attributes:
        parts: by role: `blocks[3].attn.q`, `blocks[3].norm1`, `patch_embed` and `norm`.
        tensors: by name of a parameter, on meta as long as the model has no weights.
        measured: sums of squared gradients by name of a parameter; None where none are asked for.
    """

    parts: Mapping[str, OwnLayer]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    measured: Mapping[str, torch.Tensor] | None = field(default=None, repr=False)
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def __contains__(self, role: str) -> bool:
        return role in self.parts

    def weight(self, role: str) -> torch.Tensor:
        """The weight of a layer, its rows first."""
        part = self.parts[role]
        return part.of(self.tensors[part.weight]).detach()

    def bias(self, role: str) -> torch.Tensor:
        """Its bias; zeros where it has none."""
        part = self.parts[role]
        if part.bias is None:
            return self.weight(role).flatten(1)[:, 0].new_zeros(len(self.weight(role)))
        return part.of(self.tensors[part.bias]).detach()

    def importance(self, role: str) -> torch.Tensor:
        """What was measured of the weight, [rows, columns]; the weight itself if nothing was."""
        part = self.parts[role]
        known = self.tensors if self.measured is None else self.measured
        found = part.of(known[part.weight]).detach().float().cpu()
        return found.flatten(1) if found.dim() > 1 else found

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """What is made of it for all modules of a clause."""
        if name not in self._made:
            self._made[name] = make()
        found: _T = self._made[name]
        return found

    @property
    def matrices(self) -> dict[str, OwnLayer]:
        """The layers in blocks and the patch embedding that have more than a vector."""
        inside = ("blocks", "stages", "patch_embed")
        return {
            role: part
            for role, part in self.parts.items()
            if role.startswith(inside) and self.tensors[part.weight].dim() > 1
        }

    @property
    def known(self) -> bool:
        """Whether the model has weights."""
        return not any(tensor.is_meta for tensor in self.tensors.values())

    def given(self, base: Mapping[int, torch.Tensor]) -> OwnLayers:
        """The same of the model with weights, by the id of a tensor on meta."""
        tensors = {name: base.get(id(t), t) for name, t in self.tensors.items()}
        return replace(self, tensors=tensors, _made={})


def origin_of(
    root: nn.Module, anatomy: Anatomy, measured: Mapping[str, torch.Tensor] | None
) -> OwnLayers:
    """All layers of a tree that a plain transformer has."""
    tensors = dict(root.named_parameters(remove_duplicate=False))
    parts = {}
    for role, site in anatomy.roles():
        if hasattr(site, "weight"):
            bias = f"{site.weight.removesuffix('weight')}bias"
            ranges = () if site.rows is None and not site.pieces else site.ranges
            parts[role] = OwnLayer(site.weight, bias if bias in tensors else None, ranges)
    for norm in anatomy.norms:
        parts[norm.role] = _whole(norm.path, tensors)
    if anatomy.norm:
        parts["norm"] = _whole(anatomy.norm, tensors)
    for conv in anatomy.convs:
        if conv.path.startswith(f"{anatomy.patch_embed}."):
            parts["patch_embed"] = _whole(conv.path, tensors)
    known = {role: part for role, part in parts.items() if part.weight in tensors}
    names = {n for p in known.values() for n in (p.weight, p.bias) if n}
    return OwnLayers(known, {name: tensors[name] for name in sorted(names)}, measured)


def _whole(path: str, tensors: Mapping[str, torch.Tensor]) -> OwnLayer:
    bias = f"{path}.bias"
    return OwnLayer(f"{path}.weight", bias if bias in tensors else None)
