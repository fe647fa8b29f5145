"""Configuration values as keys."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any

import torch

_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})


def freeze(value: Any) -> Hashable:
    """A hashable that is equal only for equal configuration values."""
    if type(value) in _PLAIN:
        return type(value).__name__, value
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, type)):
        return (type(value).__name__, value)
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(freeze, value))
    if isinstance(value, dict):
        return ("dict", *((freeze(k), freeze(v)) for k, v in value.items()))
    if isinstance(value, (set, frozenset)):
        return ("set", frozenset(map(freeze, value)))
    if isinstance(value, functools.partial):
        return ("partial", value.func, freeze(value.args), freeze(value.keywords))
    return ("object", id(value))
