"""Leaves: childless modules of `torch.nn`, and what passes put in. Everything else is traced."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import kernels


def is_torch_class(cls: type) -> bool:
    """Whether torch itself defines the class."""
    return cls.__module__.startswith("torch.nn.modules.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of the module stays one node."""
    return is_inserted(module) or (is_torch_class(type(module)) and not module._modules)


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


def mentioned(cls: type[nn.Module]) -> list[type[nn.Module]]:
    """Other classes of modules that the methods of an inserted class name: it may make them."""
    space = cls.forward.__globals__ if hasattr(cls, "inserted_by") else {}
    codes = [m.__code__ for m in vars(cls).values() if hasattr(m, "__code__")]
    names = dict.fromkeys(name for code in codes for name in code.co_names)
    found = [space[name] for name in names if isinstance(space.get(name), type)]
    return [c for c in found if issubclass(c, nn.Module) and c is not cls and not is_torch_class(c)]


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
    module: nn.Module,
    cls: type[nn.Module],
    args: Any,
    kwargs: Any,
    meta: Callable[[torch.Tensor], torch.Tensor],
) -> Any:
    """What a leaf that is a `cls` yields on meta, whatever device its weights are on.

    Its hooks do not run: they do where it is called.
    """
    if "_flat_weights" in module.__dict__:  # recurrent layers keep their weights twice
        dtype = meta(module._parameters["weight_ih_l0"]).dtype  # type: ignore[arg-type]
        known = kernels.of_recurrent(module, dtype, *args, **kwargs)
        return _swapped(module, args, kwargs, meta) if known is None else known
    if module._modules:
        return _swapped(module, args, kwargs, meta)
    # `functional_call` of a childless module, in a tenth of the time.
    shell = type(module).__new__(type(module))
    shell.__dict__.update(module.__dict__, training=module.training)
    for table in ("_parameters", "_buffers"):
        own = module.__dict__[table].items()
        shell.__dict__[table] = {k: None if t is None else meta(t) for k, t in own}
    known = None if kwargs else kernels.of_layer(shell, *args, cls=cls)
    return shell.forward(*args, **kwargs) if known is None else known


def _swapped(
    module: nn.Module, args: Any, kwargs: Any, meta: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    tensors = (*module.named_parameters(), *module.named_buffers())
    state = {name: meta(tensor) for name, tensor in tensors}
    hooks = module._forward_hooks, module._forward_pre_hooks
    module._forward_hooks, module._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        return torch.func.functional_call(module, state, args, kwargs)
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks
