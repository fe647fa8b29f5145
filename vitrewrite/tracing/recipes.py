"""What operations on meta tensors yield, remembered: meta kernels are slow, models repeat."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

_RECIPES: dict[Hashable, Any] = {}  # by everything that a result depends on
_MOST = 50_000  # a model of many parts has about 1000


def remembered(
    function: Callable[[Any], Any],
    value: Any,
    key: Hashable,
    worth: Callable[[Any], bool] = lambda _: True,
) -> Any:
    """`function(value)`, run only where nothing equal was run before.

    Args:
        function: an operation on meta tensors.
        value: its argument, nested.
        key: identifies the operation, whose result depends on nothing but the shapes and constants
            in `value`.
        worth: whether a result is to be remembered.
    """
    full = (key, torch.get_default_dtype(), _described(value))
    if full in _RECIPES:
        return _remade(_RECIPES[full])
    result = function(value)
    if len(_RECIPES) >= _MOST:
        _RECIPES.clear()
    if worth(result):
        _RECIPES[full] = _recipe(result)
    return result


def _described(value: Any) -> Hashable:
    """Everything that a meta kernel can see of its arguments."""
    if type(value) in _PLAIN:
        return type(value), value
    if isinstance(value, torch.Tensor):
        return ("tensor", value.shape, value.stride(), value.dtype, value.device.type)
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(_described, value))
    if isinstance(value, dict):
        return ("dict", *((k, _described(v)) for k, v in value.items()))
    if isinstance(value, slice):
        return ("slice", *map(_described, (value.start, value.stop, value.step)))
    if isinstance(value, Hashable):  # which the key keeps, so that nothing else gets its id
        return (type(value).__name__, value)
    return object()  # equal to nothing: not remembered


_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype})


def _recipe(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return tuple(result.shape), result.stride(), result.dtype
    if isinstance(result, (tuple, list)):
        return _Several(type(result), [_recipe(r) for r in result])
    return _Constant(result)


@dataclass(frozen=True)
class _Constant:
    value: Any


@dataclass(frozen=True)
class _Several:
    kind: type  # of a tuple or list, or the named tuple of `x.max(dim=1)`
    recipes: list[Any]


def _remade(recipe: Any) -> Any:
    if isinstance(recipe, tuple):
        shape, stride, dtype = recipe
        return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    if isinstance(recipe, _Constant):
        return recipe.value
    assert isinstance(recipe, _Several)
    return recipe.kind(_remade(r) for r in recipe.recipes)
