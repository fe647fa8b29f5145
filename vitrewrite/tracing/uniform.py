"""Tensors all elements of which are equal, at any size: masks of ones, and what follows."""

from __future__ import annotations

from typing import Any

import torch

from . import tree
from .numbers import Tracked

_FILLED = {"zeros", "ones", "zeros_like", "ones_like", "new_zeros", "new_ones"}
_FILLED_WITH = {"full", "full_like", "new_full"}
_SHAPED = {
    "view", "reshape", "expand", "repeat", "permute", "transpose", "flatten", "unflatten", "clone",
    "unsqueeze", "squeeze", "contiguous", "expand_as", "view_as", "reshape_as", "broadcast_to",
    "swapaxes", "movedim", "moveaxis", "detach", "to", "type_as", "float", "double", "half",
    "bfloat16", "bool", "int", "long", "type", "t", "T", "mT", "tile",
}  # fmt: skip
_BY_ELEMENT = {
    "eq", "ne", "lt", "le", "gt", "ge", "inv", "invert", "logical_not", "logical_and",
    "bitwise_not", "logical_or", "and_", "or_", "xor", "add", "sub", "mul", "neg", "abs",
    "truediv", "rsub",
}  # fmt: skip
_REDUCED = {"all", "any", "amin", "amax"}
FRESH = {
    *_FILLED, *_FILLED_WITH, *_BY_ELEMENT, *_REDUCED, "clone", "cat", "stack", "cumsum", "sum",
    "sin", "cos", "pow", "exp", "log", "sqrt", "floordiv", "mod", "mean", "argmax", "argmin",
    "repeat",
}  # fmt: skip
"""Operations whose result shares no memory with what they are given."""


def stays_uniform(name: str, arguments: Any, uniform: list[bool]) -> bool:
    """Whether an operation makes a uniform tensor whose value hangs on no size.

    Args:
        name: of the operation.
        arguments: its arguments and keywords.
        uniform: for each tensor whose elements it reads, whether it is uniform.
    """
    args, kwargs = arguments
    if name in _FILLED:
        return True
    if name in _FILLED_WITH:
        value = kwargs.get("fill_value", args[-1])
        return not isinstance(value, (Tracked, torch.Tensor))
    if not uniform or not all(uniform):
        return False
    if name in _SHAPED:
        return True
    if name == "getitem":
        return _whole(args[1])
    if name == "interpolate":
        return (kwargs.get("mode") or (*args, *[None] * 4)[3] or "nearest") == "nearest"
    if name in ("max", "min"):
        return len(args) == 1 and not kwargs
    sizes = any(isinstance(v, Tracked) and v.deps for v in tree.leaves(arguments))
    return name in _REDUCED or (name in _BY_ELEMENT and not sizes)


def _whole(index: Any) -> bool:
    """Whether an index cannot leave a tensor without elements."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is ... or type(p) is int or p == slice(None) for p in parts)
