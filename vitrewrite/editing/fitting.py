"""Makes what is put into a model fit it: dtype and device, mode, and initial values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..catalog.declare import Pass
from ..tracing import walk


def fit(
    module: nn.Module, owner: nn.Module, like: torch.Tensor | None, instead: Any = None
) -> None:
    """Gives a new child the mode of its owner, and the dtype and device of a tensor.

    One that tells where tokens go, `instead` of which it is there, is followed by one that does.
    """
    module.train(owner.training)
    if getattr(instead, "traced", False):
        module.__dict__["traced"] = True
    if like is not None:
        module.to(dtype=like.dtype, device=like.device)


def floating(root: nn.Module) -> torch.Tensor | None:
    """The first tensor of a module, or of those in it, that it computes with."""
    tensors = (t for m in root.modules() for t in (*m._parameters.values(), *m._buffers.values()))
    return next((t for t in tensors if t is not None and t.is_floating_point()), None)


def initialise(method: Pass, module: nn.Module, generator: torch.Generator) -> None:
    """Draws the parameters of an inserted module in float32 or better, rounded to its dtype."""
    like = floating(module)
    if like is None or like.is_meta:
        method.initialise(module, generator)
        return
    dtype, device = like.dtype, like.device
    module.to(dtype=torch.promote_types(dtype, torch.float32), device=generator.device)
    method.initialise(module, generator)
    module.to(dtype=dtype, device=device)


@contextmanager
def modes_kept(*roots: nn.Module) -> Iterator[None]:
    """Gives every module its mode back at the end, and to one that is new that of its owner."""
    modes = {id(m): m.training for root in roots for m in walk.modules(root)}
    try:
        yield
    finally:
        for root in roots:
            root.training = modes[id(root)]
            for owner in walk.modules(root):
                for child in owner.children():
                    if id(child) in modes:
                        child.training = modes[id(child)]
                    else:
                        child.train(owner.training)
