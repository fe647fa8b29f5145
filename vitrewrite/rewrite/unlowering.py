"""The way back from a lowered model: where its tensors came from, and what they were."""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch

from ..editing.editor import Insertion
from ..editing.folds import Lowered

if TYPE_CHECKING:
    from .rewritten import Rewritten


def key_map(lowered: Rewritten) -> dict[str, dict[str, Any]]:
    """Which names of the state dict are gone: what is in `to` now, None for nowhere, and why.

    Empty where no name changed.
    """
    assert lowered.unlowered is not None
    old, new = (m.module.state_dict().keys() for m in (lowered.unlowered, lowered))
    found = {}
    for name in (n for n in old if n not in new):
        step = _step(name, lowered)
        # What an inserted module held may be in another one of its clause.
        dropped = not (step.made or step.folds or _inside(name, step, lowered.unlowered))
        to = [] if dropped else _heirs(step, lowered, new - old)
        found[name] = {"to": to or None, "clause": step.insertion.site.clause.text}
    return found


def _step(name: str, lowered: Rewritten) -> Lowered:
    """What became of the inserted module that a tensor was in, or that took it as an argument."""
    assert lowered.unlowered is not None
    steps = lowered.result.editor.lowered
    inside = (s for s in steps if _inside(name, s, lowered.unlowered))
    return next(inside, None) or max(steps, key=lambda s: _shared(name, s.insertion))


def _inside(name: str, step: Lowered, unlowered: Rewritten) -> bool:
    """Whether a tensor was in an inserted module."""
    root = unlowered.module
    owner = root.get_submodule(name.rpartition(".")[0])
    return owner in root.get_submodule(step.insertion.path).modules()


def _shared(name: str, insertion: Insertion) -> int:
    """How long the path is that a tensor and an inserted module have in common."""
    pairs = zip(name.split("."), insertion.path.split("."), strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])


def _heirs(step: Lowered, lowered: Rewritten, added: Collection[str]) -> list[str]:
    """The tensors that an inserted module went into."""
    steps = [step]
    if not (step.made or step.folds):  # shared by all sites of the clause, such as masks
        steps = [
            s for s in lowered.result.editor.lowered if s.insertion.clause == step.insertion.clause
        ]
    paths = tuple(f"{insertion.path}." for s in steps for insertion in s.made)
    folded = {name for s in steps for fold in s.folds for name in fold.names}
    return sorted([*folded, *(name for name in added if name.startswith(paths))])


def changed(lowered: Rewritten) -> list[str]:
    """The tensors that both models have by name, with other values."""
    names = lowered.module.state_dict().keys()
    return sorted(originals(lowered).keys() & names)


def originals(lowered: Rewritten) -> dict[str, torch.Tensor]:
    """The tensors of the unlowered model that the lowered one lacks, or has with other values."""
    assert lowered.unlowered is not None
    new, old = lowered.module.state_dict(), lowered.unlowered.module.state_dict()
    return {k: v for k, v in old.items() if k not in new or not same_bits(v, new[k])}


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors are the same to the last bit: a zero and its negative are not."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.data_ptr() == second.data_ptr() and first.stride() == second.stride():
        return True
    return torch.equal(_raw(first), _raw(second))


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
