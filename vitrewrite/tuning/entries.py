"""Entries of a sharded model: its methods other than `forward`, which gather parameters too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from ..emission.entrances import entrances
from ..tracing.entries import ENTRIES


def register_entries(module: nn.Module) -> None:
    """Has the entries of a model under FSDP2 gather what they need, as its forward does.

    An entry that runs inside of another, as those do that the forward is made of, is called as it
    is: registered there, it would end the group's backward before the rest has its gradients.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    running: list[None] = []
    module.register_forward_pre_hook(lambda *_: running.append(None), prepend=True)
    module.register_forward_hook(lambda *_: running.clear(), always_call=True)
    names = (*ENTRIES, *entrances(module))
    for name in (n for n in names if callable(getattr(type(module), n, None))):
        inner = getattr(module, name)
        register_fsdp_forward_method(module, name)
        call = functools.partial(_entered, running, inner, getattr(module, name))
        setattr(module, name, functools.wraps(inner)(call))


def _entered(
    running: list[None],
    inner: Callable[..., Any],
    outer: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """An entry: inside of another call of the model the method alone."""
    if running:
        return inner(*args, **kwargs)
    running.append(None)
    try:
        return outer(*args, **kwargs)
    finally:
        running.clear()
