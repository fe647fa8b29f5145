"""Constructor calls for leaf layers: torch's own and those that passes insert."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import nn

from ..tracing.leaves import is_torch_class

_RENAMED = {"in_features": "dim", "normalized_shape": "dim", "num_features": "dim",
            "in_channels": "dim", "out_features": "out_dim", "out_channels": "out_dim"}  # fmt: skip


_RANKED = ("normalized_shape", "unflattened_size")
"""Arguments of which one number means one dimension, not the same in all."""


@functools.cache
def _signature(cls: type) -> tuple[inspect.Parameter, ...]:
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]  # type: ignore[misc]
    keep = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p for p in parameters if p.kind in keep and p.name not in ("device", "dtype"))


def arguments(layer: nn.Module) -> dict[str, Any]:
    """The constructor arguments that made a layer, read off its attributes; no defaults.

    Layers keep each argument under its own name; where the attribute is a tensor (`bias`), the
    argument was whether to have it.
    """
    found: dict[str, Any] = {}
    cls: type = type(layer)
    for parameter in _signature(cls):
        if not hasattr(layer, parameter.name):
            continue
        value = getattr(layer, parameter.name)
        if is_torch_class(cls):
            value = _simple(value, isinstance(parameter.default, bool), parameter.name in _RANKED)
        default = parameter.default
        if (
            default is inspect.Parameter.empty
            or value != default
            or type(value) is not type(default)
        ):
            found[parameter.name] = value
    return found


def positional(layer: nn.Module) -> set[str]:
    """Arguments without a default, which are written without their names."""
    cls: type = type(layer)
    return {p.name for p in _signature(cls) if p.default is inspect.Parameter.empty}


def default(cls: type, argument: str) -> Any:
    """The default of a constructor argument."""
    return next(p.default for p in _signature(cls) if p.name == argument)


def wish(argument: str) -> str:
    """The name that a class's own argument gets when it feeds this one."""
    return _RENAMED.get(argument, argument)


def torch_name(cls: type) -> str | None:
    """How a class of `torch.nn` is written, or None for any other."""
    return f"nn.{cls.__name__}" if getattr(nn, cls.__name__, None) is cls else None


def _simple(value: Any, flag: bool, ranked: bool) -> Any:
    if flag and (value is None or isinstance(value, torch.Tensor)):
        return value is not None
    if isinstance(value, torch.Size):
        value = tuple(value)
    if (
        isinstance(value, tuple)
        and value
        and not (ranked and len(value) > 1)
        and all(v == value[0] for v in value)
    ):
        return value[0] if isinstance(value[0], int) else value
    return value
