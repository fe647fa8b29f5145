"""What a pass does where it does not say: initial values, delta and errors of what it inserts.

The only file of its package that needs torch; `declare` imports it when it is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from .signatures import SIZES_KEPT


def constructor(module: nn.Module) -> dict[str, Any]:
    """The arguments that made an inserted module, which it keeps under their own names."""
    return {name: getattr(module, name) for name in parameters(type(module))}


def parameters(cls: type[nn.Module]) -> Mapping[str, inspect.Parameter]:
    """What the constructor of a class takes; nothing where it is that of every module."""
    own = cls.__init__ is not nn.Module.__init__
    return inspect.signature(cls).parameters if own else {}


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draws the parameters of a module, by its own `reset_parameters(generator)` if it has one.

    Else they are what its constructor makes of them, with torch's own layers drawn as they are.
    """
    own = getattr(module, "reset_parameters", None)
    if own is not None:
        own(generator)
        return
    values = dict(module.named_parameters())
    if not values or next(iter(values.values())).is_meta:
        return
    made = dict(_made_again(module, generator).named_parameters())
    for name, parameter in values.items():
        parameter.copy_(made[name])


def _made_again(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Another module of the same arguments, in float32 whatever the default of the process."""
    seed = int(torch.randint(1 << 62, (), generator=generator, device=generator.device))
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=()), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            return type(module)(**constructor(module))
        finally:
            torch.set_default_dtype(before)


def delta(module: nn.Module) -> list[dict[str, torch.Tensor]]:
    """All parameters of a module that is at one site, and its buffers, under its own names.

    Of the buffers those that a state dict has, such as the statistics of a batch norm.
    """
    kept = module.state_dict().keys()
    buffers = {name: b for name, b in module.named_buffers() if name in kept}
    return [{**dict(module.named_parameters()), **buffers}]


def errors(inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> dict[str, float]:
    """How many patches a merge loses or counts twice, in the image where it is most.

    Args:
        inputs: tokens [B, T, C], other values, and last sizes [B, T] if tokens were merged before.
        outputs: tokens and their sizes.
    """
    known = inputs[-1] if inputs[-1].shape == inputs[0].shape[:2] else None
    before = inputs[0].shape[1] if known is None else known.float().sum(1)
    return {SIZES_KEPT: float((outputs[1].float().sum(1) - before).abs().max())}
