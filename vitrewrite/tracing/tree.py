"""Small helpers over module trees and nested values."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import walk
from .numbers import Tracked

if TYPE_CHECKING:
    from .frame import Frame


def module_paths(model: nn.Module) -> dict[int, list[str]]:
    """Every path under which each module object can be reached."""
    paths: dict[int, list[str]] = {}
    for path, module in walk.paths(model):
        paths.setdefault(id(module), []).append(path)
    return paths


def tensor_paths(model: nn.Module) -> dict[int, list[str]]:
    """Every path under which each parameter or buffer can be reached."""
    paths: dict[int, list[str]] = {}
    for prefix, module in walk.paths(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                paths.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return paths


def relative(path: str, prefix: str) -> str | None:
    """`path` as seen from `prefix`, or None if it is not below it."""
    if not prefix:
        return path
    return path[len(prefix) + 1 :] if path.startswith(f"{prefix}.") else None


def find(paths: list[str], prefix: str) -> str | None:
    """The first of `paths` that lies below `prefix`."""
    return next((p for p in paths if relative(p, prefix) is not None), None)


def leaves(value: Any) -> Iterator[Any]:
    """Tensors and tracked numbers in a nested value, in order."""
    if isinstance(value, (torch.Tensor, Tracked)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))


def has_tensor(value: Any) -> bool:
    """Whether there is a tensor in a nested value."""
    return any(isinstance(v, torch.Tensor) for v in leaves(value))


def passed(frame: Frame | None, value: Any) -> Iterator[Any]:
    """What a call hands over: leaves, dtypes, and devices that the caller read off a tensor."""
    if isinstance(value, torch.dtype):
        if frame is not None:
            yield value
    elif isinstance(value, torch.device):
        if frame is not None and frame.has_read(value):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from passed(frame, item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from passed(frame, item)
    else:
        yield from leaves(value)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with `function` applied to tensors and tracked numbers."""
    if isinstance(value, (torch.Tensor, Tracked)):
        return function(value)
    if isinstance(value, torch.Size):
        return torch.Size(map_leaves(function, v) for v in value)
    if isinstance(value, tuple):
        return rebuilt(value, [map_leaves(function, v) for v in value])
    if isinstance(value, list):
        return [map_leaves(function, v) for v in value]
    if isinstance(value, dict):
        return _like(value, {k: map_leaves(function, v) for k, v in value.items()})
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return slice(*(map_leaves(function, v) for v in parts))
    return value


def rebuilt(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """A tuple of other items; one with names, of Python's or of torch's, keeps them."""
    if hasattr(value, "_fields"):
        return type(value)(*items)
    # What `x.max(dim=1)` returns takes its items as one sequence.
    return type(value)(items) if hasattr(value, "n_sequence_fields") else tuple(items)


def _like(value: dict[str, Any], items: dict[str, Any]) -> Any:
    """A dict of the same type and order; dataclass outputs bring an order of their own."""
    if type(value) is dict:
        return items
    result = type(value)(**items)
    if isinstance(result, OrderedDict):
        for key in items:
            result.move_to_end(key)
    return result


def signature_of_dict(module: nn.Module) -> dict[str, int]:
    """Identity of every attribute: a forward that changes one must not be memoised."""
    found = module.__dict__.items()
    return {k: id(v) + len(v) if isinstance(v, (list, dict, set)) else id(v) for k, v in found}
