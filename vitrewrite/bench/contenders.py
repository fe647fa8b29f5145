"""The models that are compared: base, rewritten, lowered, and what torch.compile makes of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..api import lower
from ..rewrite.rewritten import Rewritten
from ..tracing.unit import duplicate


@dataclass(frozen=True)
class Contender:
    """A model under test.

    Attributes:
        name: `base`, `rewritten` or `lowered`, and `compiled` after it if it is.
        module: the model, which holds parameters and mode; what is trained requires gradients.
        call: the model or its compiled form.
        macs: multiply-accumulates per image of its forward.
    """

    name: str
    module: nn.Module
    call: Callable[..., Any]
    macs: int

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that a training step finds gradients for."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def compiled(self) -> bool:
        """Whether it is torch.compile's form."""
        return self.call is not self.module


def contenders(
    rewritten: Rewritten, device: torch.device, dtype: torch.dtype, *, compile: bool
) -> list[Contender]:
    """The models on a device, the base first; all but the classifier of the base is frozen.

    The lowered model trains what is left of what the spec trains, which may be the head alone.
    """
    lowered = lower(rewritten)
    trained, left = (
        {n for n, p in each.module.named_parameters() if p.requires_grad}
        for each in (rewritten, lowered)
    )
    made = [
        ("base", rewritten.base, rewritten.result.head, rewritten.measures.macs_base),
        ("rewritten", rewritten.module, trained, rewritten.measures.macs),
        ("lowered", lowered.module, left, lowered.measures.macs),
    ]
    eager = []
    for name, root, names, macs in made:
        module = twin(root, names, device, dtype)
        eager.append(Contender(name, module, module, macs))
    if not compile:
        return eager
    return eager + [
        Contender(f"{c.name} compiled", c.module, compile_apart(c.module), c.macs) for c in eager
    ]


def compile_apart(model: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile makes of a model, without caches.

    With them the base, which is first, would pay for code that the lowered model shares. A graph
    break, or a limit of recompilation, is an error and not time that nobody sees.
    """
    made: Callable[..., Any] = torch.compile(
        model, fullgraph=True, options={"force_disable_caches": True}
    )
    return made


def twin(
    root: nn.Module, trained: Collection[str], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A copy with parameters of its own, on the device; storage is shared where nothing changes."""
    chosen = {id(p) for n, p in root.named_parameters() if n in trained}

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    def parameter(old: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(cast(old.detach()), requires_grad=id(old) in chosen)

    return duplicate(root, parameter, lambda b: cast(b.clone()))
