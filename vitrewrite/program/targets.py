"""Names for what a graph may call, and nothing else: the list decides, not the file."""

from __future__ import annotations

import builtins
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..tracing.guards import check_dtype, check_input, check_size
from ..tracing.modes import by_mode
from ..tracing.sizes import by_size
from .values import ProgramError

_OWN: dict[str, Callable[..., Any]] = {
    "check_input": check_input,
    "check_size": check_size,
    "check_dtype": check_dtype,
    "by_mode": by_mode,
    "by_size": by_size,
}
_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "matmul", "pow", "and_", "or_", "xor"),
    *("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "not_", "abs", "getitem"),
    *("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "is_", "is_not", "contains"),
    *("lshift", "rshift", "truth"),
)
_BUILTINS = ("abs", "bool", "float", "int", "len", "max", "min", "round", "sum", "getattr", "pow")
# Operators of tensors that torch wraps in functions of its own.
_OF_TENSORS = (
    *("__pow__", "__rpow__", "__rsub__", "__rdiv__", "__floordiv__", "__rfloordiv__", "__rmod__"),
    *("__rmatmul__", "__pos__"),
)
# Of the functions on tensors these read files or memory.
_REFUSED = {"from_file", "frombuffer", "from_dlpack"}
_FUNCTIONAL = {"torch.nn.functional", "torch.functional", "torch._jit_internal"}
# Methods that take functions, hand out memory or leave the tensor.
_REFUSED_METHODS = {
    *("apply_", "map_", "map2_", "register_hook", "register_post_accumulate_grad_hook", "numpy"),
    *("share_memory_", "set_", "storage", "untyped_storage", "storage_type", "module_load"),
    *("backward", "resize_", "resize_as_", "resize", "resize_as", "reinforce", "data_ptr"),
}


def _from_module(space: ModuleType, prefix: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Functions that torch itself computes with, or that its functional modules define."""
    own = torch._C._VariableFunctions
    for name in sorted(vars(space)):
        found = getattr(space, name)
        if name.startswith("_") or name in _REFUSED or not callable(found):
            continue
        known = inspect.isbuiltin(found) and (
            space is not torch or getattr(own, name, None) is found
        )
        defined = inspect.isfunction(found) and found.__module__ in _FUNCTIONAL
        if known or defined:
            yield f"{prefix}.{name}", found


@functools.cache
def functions() -> dict[str, Callable[..., Any]]:
    """All functions that a graph may call, by qualified name."""
    found: dict[str, Callable[..., Any]] = dict(_OWN)
    found |= {f"operator.{name}": getattr(operator, name) for name in _OPERATORS}
    found |= {f"builtins.{name}": getattr(builtins, name) for name in _BUILTINS}
    found |= {f"math.{k}": v for k, v in vars(math).items() if k[0] != "_" and callable(v)}
    for space, prefix in (
        (torch, "torch"), (F, "torch.nn.functional"), (torch.linalg, "torch.linalg"),
        (torch.fft, "torch.fft"), (torch.special, "torch.special"),
    ):  # fmt: skip
        found.update(_from_module(space, prefix))
    found |= {
        "torch.finfo": torch.finfo,
        "torch.iinfo": torch.iinfo,
        "torch._assert": torch._assert,
    }
    found |= {f"torch.Tensor.{name}": getattr(torch.Tensor, name) for name in _OF_TENSORS}
    found["torch._C._set_grad_enabled"] = torch._C._set_grad_enabled
    return found


@functools.cache
def _names() -> dict[int, str]:
    return {id(function): name for name, function in reversed(functions().items())}


def name_of(function: Any) -> str:
    """The qualified name of a function.

    Raises:
        DataError: if it is not on the list.
    """
    found = _names().get(id(function))
    if found is None:
        raise ProgramError(f"it calls {getattr(function, '__name__', function)}")
    return found


def function_named(name: object) -> Callable[..., Any]:
    """The function of a qualified name.

    Raises:
        DataError: if it is not on the list.
    """
    found = functions().get(name) if isinstance(name, str) else None
    if found is None:
        raise ProgramError(f"it calls {name!r}")
    return found


@functools.cache
def methods() -> frozenset[str]:
    """Methods of tensors that a graph may call."""
    names = (n for n in dir(torch.Tensor) if not n.startswith("_"))
    return frozenset(
        n for n in names if callable(getattr(torch.Tensor, n)) and n not in _REFUSED_METHODS
    )


@functools.cache
def attributes() -> frozenset[str]:
    """Attributes of tensors, and of the limits of dtypes, that a graph may read."""
    names = (n for n in dir(torch.Tensor) if not n.startswith("_"))
    limits = {n for n in dir(torch.finfo) if not n.startswith("_")}
    return frozenset(n for n in names if not callable(getattr(torch.Tensor, n))) | limits


@functools.cache
def layers() -> dict[str, type[nn.Module]]:
    """Layers of torch.nn that a program may have as leaves, by name."""
    return {
        name: cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type)
        and issubclass(cls, nn.Module)
        and cls.__module__.startswith("torch.nn.modules.")
        and not name.startswith("Lazy")
        and cls is not nn.Module
    }


CONTAINERS: dict[str, type[nn.Module]] = {
    "ModuleList": nn.ModuleList, "ModuleDict": nn.ModuleDict, "Sequential": nn.Sequential,
}  # fmt: skip
