"""Layers that decide, and train no more once a model is lowered."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import nn

from ..tracing.unit import duplicate

_M = TypeVar("_M", bound=nn.Module)


def frozen(layer: _M) -> _M:
    """The same layer on the same memory, without gradients: what it decides has none by then."""
    made = duplicate(layer, lambda p: nn.Parameter(p.detach(), requires_grad=False), lambda b: b)
    return cast(_M, made)
