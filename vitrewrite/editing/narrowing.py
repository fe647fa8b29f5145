"""Layers that lose rows or columns: their tensors are some slices of those that were there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from .editor import Editor


@dataclass(frozen=True, eq=False)
class Slices:
    """Where the parts of a layer, units or heads, are in one of its tensors.

    Attributes:
        name: of the parameter or buffer.
        axis: along which they lie.
        of: [parts, n], the n positions on that axis that belong to each part.
    """

    name: str
    axis: int
    of: torch.Tensor

    def indices(self, parts: torch.Tensor) -> torch.Tensor:
        """The positions of some parts, in ascending order."""
        return self.of[parts].flatten().sort().values


@dataclass(eq=False)
class Remaining:
    """Which parts of a layer stay: those named, or as many as said, those that weigh most.

    What a part weighs is the product of the norms of its slices of some tensors.

    Attributes:
        count: how many stay.
        parts: which, in ascending order, once it is known.
        by: tensors on meta, each with its slices, that say what a part weighs.
    """

    count: int
    parts: torch.Tensor | None = None
    by: Sequence[tuple[torch.Tensor, Slices]] = ()

    def known(self, value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Which parts stay, by what the tensors on meta stand for."""
        if self.parts is None:
            weights = [_norms(value(tensor), slices) for tensor, slices in self.by]
            weight = torch.stack(weights).prod(dim=0)
            order = weight.argsort(descending=True, stable=True)
            self.parts = order[: self.count].sort().values
        return self.parts


def _norms(tensor: torch.Tensor, slices: Slices) -> torch.Tensor:
    """The norm of each part's slices, in float64 for equal choices everywhere."""
    rows = tensor.detach().cpu().double().movedim(slices.axis, 0).flatten(1)
    found: torch.Tensor = rows[slices.of].flatten(1).norm(dim=1)
    return found


@dataclass(frozen=True, eq=False)
class Gathered:
    """A tensor on meta that holds some slices of another.

    Attributes:
        new: the tensor.
        old: what it is made of, on meta too.
        slices: where the parts are in `old`.
        choice: which parts it has.
    """

    new: torch.Tensor
    old: torch.Tensor
    slices: Slices
    choice: Remaining = field(repr=False)

    def made(self, value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The numbers of the new tensor."""
        whole = value(self.old).detach()
        index = self.slices.indices(self.choice.known(value)).to(whole.device)
        return whole.index_select(self.slices.axis, index)


def narrow(editor: Editor, slices: Slices, choice: Remaining) -> None:
    """Puts some slices of a tensor in its place, and tells the layer that holds it.

    While a model is rewritten it has no numbers, and is noted for whoever gives it some.
    """
    owner, _, name = slices.name.rpartition(".")
    module = editor.root.get_submodule(owner)
    table = module._parameters if name in module._parameters else module._buffers
    old = table[name]
    assert old is not None
    if old.is_meta:
        shape = list(old.shape)
        shape[slices.axis] = choice.count * slices.of.shape[1]
        data = torch.empty(shape, dtype=old.dtype, device="meta")
    else:
        parts = choice.known(lambda tensor: tensor)
        data = old.detach().index_select(slices.axis, slices.indices(parts).to(old.device))
    new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
    table[name] = new  # type: ignore[assignment]
    if old.is_meta:
        editor.gathered.append(Gathered(new, old, slices, choice))
    _tell(module, name)


def _tell(module: nn.Module, name: str) -> None:
    """A layer of torch says how wide it is."""
    if name != "weight" or not isinstance(module, (nn.Linear, nn.Conv2d)):
        return
    rows, columns = module.weight.shape[:2]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = rows, columns
    else:
        module.out_channels, module.in_channels = rows, columns
