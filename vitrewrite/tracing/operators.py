"""What a `__torch_function__` call was in the source: an operator, a method, a function."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .notes import GUARD

_BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "subtract": operator.sub, "mul": operator.mul,
    "multiply": operator.mul, "div": operator.truediv, "true_divide": operator.truediv,
    "matmul": operator.matmul, "pow": operator.pow, "remainder": operator.mod,
    "floor_divide": operator.floordiv, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt,
    "le": operator.le, "gt": operator.gt, "ge": operator.ge, "add_": operator.iadd,
    "sub_": operator.isub, "mul_": operator.imul, "div_": operator.itruediv,
    "__floordiv__": operator.floordiv, "__mod__": operator.mod, "__getitem__": operator.getitem,
    "__and__": operator.and_, "__or__": operator.or_,
    "__xor__": operator.xor, "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt,
    "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge,
}  # fmt: skip
_REVERSED: dict[str, Callable[..., Any]] = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul,
    "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rfloordiv__": operator.floordiv, "__rmod__": operator.mod,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg, "__neg__": operator.neg, "__invert__": operator.invert,
    "bitwise_not": operator.invert, "__pos__": operator.pos,
}  # fmt: skip
_INPLACE = {
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
    operator.setitem,
}  # fmt: skip
_EFFECTS = {torch._C._set_grad_enabled, torch._assert}
RANDOM = {
    "rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like",
    "randn_like", "randint_like", "dropout", "alpha_dropout", "feature_dropout", "dropout1d",
    "dropout2d", "dropout3d", "rrelu", "gumbel_softmax", "uniform", "exponential",
}  # fmt: skip

Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def canonical(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """`(kind, target, args, kwargs)` with kind `function`, `method` or `attribute`."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return "attribute", func.__self__.__name__, args, kwargs
    if func is torch.Tensor.__setitem__:
        return "function", operator.setitem, args, kwargs
    if not _is_method(func, name):
        return "function", func, args, kwargs
    if not kwargs and len(args) == 2 and name in _BINARY:
        return "function", _BINARY[name], args, kwargs
    if not kwargs and len(args) == 2 and name in _REVERSED:
        return "function", _REVERSED[name], (args[1], args[0]), kwargs
    if len(args) == 1 and name in _UNARY:
        return "function", _UNARY[name], args, kwargs
    return "method", name, args, kwargs


def _is_method(func: Any, name: str) -> bool:
    if getattr(torch.Tensor, name, None) is func or hasattr(func, "__objclass__"):
        return True
    # `x**2` calls a function that no name leads to.
    return getattr(func, "__qualname__", "").startswith(("Tensor.", "TensorBase."))


def execute(kind: str, target: Any, args: Any, kwargs: Any) -> Any:
    """Runs what `canonical` gave."""
    if kind == "attribute":
        return getattr(args[0], target)
    if kind == "method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


@functools.lru_cache(maxsize=1024)
def is_inplace(target: Any) -> bool:
    """Whether a call changes its first argument."""
    if target == "requires_grad_":
        return False
    if isinstance(target, str):
        return target.endswith("_") and not target.endswith("__")
    name = getattr(target, "__name__", "")
    return target in _INPLACE or (name.endswith("_") and not name.endswith("__"))


def is_repeatable(target: Any) -> bool:
    """Whether a call does nothing but return its result."""
    return not is_inplace(target) and target not in _EFFECTS


def draws(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of a function, or of a method of that name, draws random numbers."""
    if target is F.scaled_dot_product_attention:
        rate = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        return not (isinstance(rate, (int, float)) and rate == 0)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name.removesuffix("_") in RANDOM


def is_random(node: fx.Node) -> bool:
    """Whether a function or method node draws random numbers."""
    calls = node.op in ("call_function", "call_method")
    return calls and draws(node.target, node.args, node.kwargs)


def is_impure(node: fx.Node) -> bool:
    """Whether a node must stay even if nobody reads it."""
    if node.op in ("placeholder", "output"):
        return True
    if node.op == "call_module":
        return False
    guarded = GUARD.get(node) is not None
    return is_inplace(node.target) or node.target in _EFFECTS or guarded or is_random(node)
