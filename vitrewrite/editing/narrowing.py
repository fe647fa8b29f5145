"""Layers that lose rows or columns: their tensors are some slices of those that were there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .editor import Editor, join

if TYPE_CHECKING:
    from .clause import ClauseRef


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
class Narrowing:
    """What became of a tensor that lost rows or columns."""

    slices: Slices
    stays: Remaining

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """What is left of the tensor, once it is known."""
        assert self.stays.parts is not None, "only where there are weights"
        index = self.slices.indices(self.stays.parts).to(whole.device)
        return whole.index_select(self.slices.axis, index)


@dataclass(frozen=True, eq=False)
class Gathered:
    """A tensor on meta that holds some slices of another.

    Attributes:
        new: the tensor.
        old: what it is made of, on meta too.
    """

    new: torch.Tensor
    old: torch.Tensor
    how: Narrowing = field(repr=False)

    def made(self, value: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The numbers of the new tensor, by what tensors on meta stand for."""
        self.how.stays.known(value)
        return self.how.of(value(self.old).detach())


def narrow(editor: Editor, slices: Slices, stays: Remaining) -> None:
    """Puts some slices of a tensor in its place, and tells the layer that holds it.

    While a model is rewritten it has no numbers, and is noted for whoever gives it some.
    """
    owner, _, name = slices.name.rpartition(".")
    module, how = editor.root.get_submodule(owner), Narrowing(slices, stays)
    is_parameter = name in module._parameters
    old = (module._parameters if is_parameter else module._buffers)[name]
    assert old is not None
    if not old.is_meta:
        stays.known(lambda tensor: tensor)
    data = _unknown(old, how) if old.is_meta else how.of(old.detach())
    new = nn.Parameter(data, old.requires_grad) if is_parameter else data
    setattr(module, name, new)
    editor.narrowed.setdefault(slices.name, []).append(how)
    editor.gone += old.numel() - new.numel() if is_parameter else 0
    if old.is_meta:
        editor.gathered.append(Gathered(new, old, how))
    _tell(module, name)


def _unknown(old: torch.Tensor, how: Narrowing) -> torch.Tensor:
    shape = list(old.shape)
    shape[how.slices.axis] = how.stays.count * how.slices.of.shape[1]
    return torch.empty(shape, dtype=old.dtype, device="meta")


def take_over(editor: Editor, module: nn.Module, old: nn.Parameter) -> None:
    """The parameter `bias` of a new module is one of the model as it was."""
    assert isinstance(module.bias, nn.Parameter)
    if old.is_meta:
        stays = Remaining(len(old), torch.arange(len(old), device="cpu"))
        every = Slices("", 0, torch.arange(len(old), device="cpu")[:, None])
        editor.gathered.append(Gathered(module.bias, old, Narrowing(every, stays)))
    else:
        module.bias = nn.Parameter(old.detach().clone(), old.requires_grad)


def take_out_unread(editor: Editor, path: str, clause: ClauseRef) -> None:
    """The modules and tensors of a unit that its graph reads no more go."""
    unit = editor.own(path)
    assert unit.template is not None
    nodes = [n for n in unit.template.graph.nodes if n.op in ("call_module", "get_attr")]
    read = {str(n.target) for n in nodes}
    for name in list(unit._modules):
        if not any(f"{target}.".startswith(f"{name}.") for target in read):
            take_out(editor, join(path, name), clause)
    tables: tuple[dict[str, Any], ...] = unit._parameters, unit._buffers
    for table in tables:
        for name in [n for n in table if n not in read]:
            tensor = table.pop(name)
            editor.removed[join(path, name)] = clause
            editor.gone += tensor.numel() if isinstance(tensor, nn.Parameter) else 0


def piece(editor: Editor, name: str, whole: torch.Tensor) -> torch.Tensor:
    """What is left of a tensor of the original model; all of it as a rule."""
    for how in editor.narrowed.get(name, ()):
        whole = how.of(whole)
    return whole


def _tell(module: nn.Module, name: str) -> None:
    """A layer of torch says how wide it is."""
    if name != "weight" or not isinstance(module, (nn.Linear, nn.Conv2d)):
        return
    rows, columns = module.weight.shape[:2]
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = rows, columns
    else:
        module.out_channels, module.in_channels = rows, columns


def take_out(editor: Editor, path: str, clause: ClauseRef) -> None:
    """Takes a module out, with what passes put into it."""
    for found in list(editor.insertions):
        if f"{found.path}.".startswith(f"{path}."):
            editor.insertions.remove(found)
    editor.take_out(path, clause)
