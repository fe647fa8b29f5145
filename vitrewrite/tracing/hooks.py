"""Forward hooks while tracing: they run where the module is called, as torch runs them.

What they compute belongs to the calling forward. Libraries record hidden states that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

TABLES = frozenset({
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
})  # fmt: skip


def hooked_below(module: nn.Module) -> bool:
    """Whether anything inside of the module is hooked, so that its call cannot be replayed."""
    waiting = list(module._modules.values())
    while waiting:
        below = waiting.pop()
        if below is not None:
            if below._forward_hooks or below._forward_pre_hooks:
                return True
            waiting += below._modules.values()
    return False


def makes_state(module: nn.Module) -> bool:
    """Whether a hook makes what the forward reads, as weight norm and pruning make the weight."""
    if not module._forward_pre_hooks or module._modules:
        return False
    return any(isinstance(v, torch.Tensor) for v in module.__dict__.values())


def call(module: nn.Module, args: Any, kwargs: Any, run: Callable[[Any, Any], Any]) -> Any:
    """`run(args, kwargs)` between the hooks of the module."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if key in module._forward_pre_hooks_with_kwargs:
            changed = hook(module, args, kwargs)
            args, kwargs = (args, kwargs) if changed is None else changed
        else:
            changed = hook(module, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
    result = run(args, kwargs)
    for key, hook in list(module._forward_hooks.items()):
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        changed = hook(module, *given, result)
        result = result if changed is None else changed
    return result
