"""Leaves: childless modules of `torch.nn` and of passes. Everything else is traced."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def is_torch_class(cls: type) -> bool:
    """Whether torch itself defines the class."""
    return cls.__module__.startswith("torch.nn.modules.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of the module stays one node."""
    opaque = is_torch_class(type(module)) or is_inserted(module)
    return opaque and not module._modules


def is_inserted(module: nn.Module) -> bool:
    """Whether a pass put the module in; such modules are emitted as their source has them."""
    return hasattr(type(module), "inserted_by")


def is_helper(module: nn.Module) -> bool:
    """Whether an inserted module belongs to no pass, and only gives values to those that do."""
    return getattr(module, "inserted_by", None) == "vitrewrite"


def changed_by(module: nn.Module) -> tuple[int | None, ...]:
    """For each output of an inserted module the argument that it is a changed form of.

    An output that is something new has None; a module that only makes new values has no entries.
    """
    return getattr(module, "changes", ()) if is_inserted(module) else ()


def torch_base(module: nn.Module) -> type[nn.Module] | None:
    """The `torch.nn` layer that a childless module's class derives from, if any."""
    if module._modules:
        return None
    bases = [c for c in type(module).__mro__ if is_torch_class(c) and c is not nn.Module]
    return bases[0] if bases else None


def leaf_class(module: nn.Module) -> type[nn.Module]:
    """The public class of a leaf: that of a hidden subclass which only tells it apart."""
    cls = type(module)
    while is_torch_class(cls) and getattr(nn, cls.__name__, None) is not cls:
        base = cls.__bases__[0]
        if "forward" in vars(cls) or not is_torch_class(base) or base is nn.Module:
            break
        cls = base
    return cls


def run_leaf(
    module: nn.Module, args: Any, kwargs: Any, meta: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    """The leaf's output on meta, whatever device its weights are on."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    state = {name: meta(tensor) for name, tensor in tensors}
    hooks = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:  # hooks run once, where the module is called
        return torch.func.functional_call(module, state, args, kwargs)
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks
