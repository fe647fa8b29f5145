"""Checks that a captured forward keeps: what its trace took for granted about sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from .nodes import after_inputs, attribute_of
from .notes import GUARD

if TYPE_CHECKING:
    from .frame import Frame

_OPPOSITE = {
    operator.eq: operator.ne, operator.ne: operator.eq, operator.lt: operator.ge,
    operator.ge: operator.lt, operator.gt: operator.le, operator.le: operator.gt,
}  # fmt: skip


def check_size(held: bool, what: str) -> None:
    """A guard inside a forward; printed as `if not held: raise ValueError(...)`.

    Raises:
        ValueError: if `held` is false.
    """
    if isinstance(held, fx.Proxy):
        _again(check_size, held, what)
        return
    if not held:
        raise ValueError(what)


def check_input(size: tuple[int, ...], captured: tuple[int, ...]) -> None:
    """The guard at the top of a model that is fixed in image size.

    Raises:
        ValueError: if `size` differs from `captured`.
    """
    if any(isinstance(each, fx.Proxy) for each in size):
        _again(check_input, size, captured)
        return
    if tuple(size) != captured:
        want, got = ("x".join(map(str, s)) for s in (captured, size))
        raise ValueError(f"captured for {want}, got {got}")


def check_grid(size: tuple[int, ...], planned: tuple[int, ...], user: str) -> None:
    """The guard of a pass that was carried out for one grid of patches, or number of tokens.

    Raises:
        ValueError: if `size` differs from `planned`.
    """
    if any(isinstance(each, fx.Proxy) for each in size):
        _again(check_grid, size, planned, user)
        return
    if tuple(size) != planned:
        got = "x".join(map(str, size))
        raise ValueError(f"{for_grid(planned, user)}, got {got}")


def check_dtype(dtype: torch.dtype, captured: tuple[torch.dtype, ...]) -> None:
    """The guard of a forward that does something else in other dtypes.

    Raises:
        ValueError: if `dtype` is none of `captured`.
    """
    if isinstance(dtype, fx.Proxy):
        _again(check_dtype, dtype, captured)
    elif dtype not in captured:
        raise ValueError(f"{one_of(captured)}, got {dtype}")


def one_of(captured: tuple[torch.dtype, ...]) -> str:
    """For which dtypes a forward was captured, in words."""
    return f"captured for {' or '.join(map(str, captured))}"


def _again(guard: Callable[..., None], *args: Any) -> None:
    """Keeps a guard in a graph that torch.fx makes of ours."""
    proxies: list[Any] = [
        a
        for a in (*args, *tuple(args[0] if isinstance(args[0], tuple) else ()))
        if isinstance(a, fx.Proxy)
    ]
    proxies[0].tracer.create_proxy("call_function", guard, args, {})


def for_grid(planned: tuple[int, ...], user: str) -> str:
    """What a pass is made for, in words."""
    shown = "x".join(map(str, planned))
    what = f"a grid of {shown} patches" if len(planned) > 1 else f"{shown} tokens"
    return f"{user} is made for {what}"


def require(
    frame: Frame, op: Callable[..., Any], args: tuple[Any, ...], outcome: bool, deps: frozenset[int]
) -> None:
    """Adds a guard that `op(*args)` is `outcome`; it goes if `deps` turn out to be fixed."""
    target = op if outcome else _OPPOSITE[op]
    node_args = frame.arg(tuple(args))
    for node in frame.graph.nodes:
        if GUARD.get(node) is not None and _is_call(node.args[0], target, node_args):
            return
    condition = frame.graph.call_function(target, node_args)
    guard = frame.graph.call_function(check_size, (condition, _describe(target, args)))
    GUARD.put(guard, deps)


def require_dtype(tensor: fx.Node, captured: tuple[torch.dtype, ...]) -> None:
    """Adds a guard that a tensor has a dtype for which its forward was captured."""
    dtype = attribute_of(tensor, "dtype")
    with tensor.graph.inserting_after(after_inputs(dtype)):
        guard = tensor.graph.call_function(check_dtype, (dtype, captured))
    GUARD.put(guard, frozenset({DTYPE}))


DTYPE = -1  # no witness: what such a guard depends on is never fixed


def _is_call(node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    return node.target is target and node.args == args


def _describe(target: Callable[..., Any], args: tuple[Any, ...]) -> str:
    symbol = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
    names = [getattr(a, "hint", None) or str(a) for a in args]
    return f"captured for sizes where {names[0]} {symbol[target.__name__]} {names[-1]}"


GUARDS = (check_size, check_input, check_grid, check_dtype)
for _guard in GUARDS:  # torch.fx drops other calls whose results nobody uses
    fx.node.has_side_effect(_guard)


def is_guard(node: fx.Node) -> bool:
    """Whether the node is a check, not a value."""
    return node.op == "call_function" and node.target in GUARDS
