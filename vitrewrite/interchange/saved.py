"""Trained parameters of the model itself: PEFT keeps whole modules."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..rewrite.rewritten import Rewritten
from .layers import unsaid


@dataclass(frozen=True)
class Saved:
    """Modules that PEFT keeps whole, by name, and their tensors."""

    modules: tuple[str, ...]
    tensors: dict[str, torch.Tensor]


def saved(rewritten: Rewritten, layers: Sequence[str], names: Sequence[str]) -> Saved:
    """The modules that hold what the spec trains of the model.

    PEFT takes every module whose name ends like one of these; their tensors are there too.

    Args:
        rewritten: the model.
        layers: names of layers that have adapters.
        names: of all modules.

    Raises:
        FileError: VR770 for a parameter that no module without adapters holds.
    """
    modules = tuple(sorted({_owner(name) for name in rewritten.result.base_trained}))
    found = [name for name in names if modules and name.endswith(modules)]
    for module in modules:
        _refuse_adapted(module, found, layers)
    state = rewritten.module.state_dict()
    kept = tuple(f"{name}." for name in found)
    return Saved(modules, {k: v for k, v in state.items() if k.startswith(kept)} if kept else {})


def _owner(name: str) -> str:
    owner = name.rpartition(".")[0]
    if not owner:
        raise unsaid(
            f"training '{name}'", "PEFT trains whole modules, and it is the model's own tensor"
        )
    return owner


def _refuse_adapted(module: str, found: Sequence[str], layers: Sequence[str]) -> None:
    """No adapter may stand in what is kept whole: PEFT leaves it out."""
    like = re.compile(rf"(?:.*\.)?{re.escape(module)}(?:\..*)?")
    inside = (
        layer
        for layer in layers
        if like.fullmatch(layer) or f"{layer}.".startswith(tuple(f"{name}." for name in found))
    )
    if (layer := next(inside, None)) is not None:
        raise unsaid(
            f"an adapter at '{layer}' while '{module}' is trained",
            f"PEFT keeps '{module}' whole, and puts no adapter there",
        )
