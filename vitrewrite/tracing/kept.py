"""Buffers that stay as exact as they are when the rest of a model is cast.

Libraries keep frequencies and positions in float32 by a module's own `_apply`, through which casts
and moves go. What such a module does is found by casting a copy of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

_LARGEST = 1 << 20  # elements of a module that is copied


def kept_buffers(module: nn.Module) -> tuple[str, ...]:
    """Names of the floating-point buffers of a module's own that no cast makes less exact.

    Args:
        module: any; it is not changed.
    """
    cls = type(module)
    own = {n: b for n, b in module._buffers.items() if b is not None and b.is_floating_point()}
    plain = cls._apply is nn.Module._apply or cls.__module__.startswith("torch.")
    if plain or not own or module._parameters or sum(b.numel() for b in own.values()) > _LARGEST:
        return ()
    return tuple(_kept(module, own))


def _kept(module: nn.Module, own: dict[str, torch.Tensor]) -> Iterator[str]:
    for dtype in (torch.bfloat16, torch.float16):
        try:
            probe = copy.deepcopy(module).to(dtype)
        except Exception:  # whatever a module of its own kind may do: then it is taken as any other
            return
        own = {name: b for name, b in own.items() if _same(b, probe._buffers.get(name))}
    yield from own


def _same(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    if after is None or after.dtype != before.dtype or after.shape != before.shape:
        return False
    return before.is_meta or torch.equal(before, after)


def keeping(
    module: nn.Module, names: tuple[str, ...], apply: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """A module's `_apply`, after which the buffers of these names are as exact as they were."""
    before = {name: module._buffers[name] for name in names}
    result = apply(*args, **kwargs)
    for name, buffer in before.items():
        now = module._buffers[name]
        if buffer is not None and now is not None and now.itemsize < buffer.itemsize:
            module._buffers[name] = buffer.to(now.device)
    return result
