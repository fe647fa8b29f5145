"""Arguments of a node as the plain values of the primary trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ..tracing.notes import VALUE
from ..tracing.numbers import plain


def concrete(argument: Any, of: Callable[[fx.Node], Any] | None = None) -> Any:
    """`argument` with every node replaced by its value (or `of(node)`), sizes as plain numbers."""
    if isinstance(argument, fx.Node):
        return plain(VALUE.get(argument)) if of is None else of(argument)
    if isinstance(argument, (tuple, list)):
        return type(argument)(concrete(a, of) for a in argument)
    if isinstance(argument, dict):
        return {k: concrete(v, of) for k, v in argument.items()}
    if isinstance(argument, slice):
        bounds = argument.start, argument.stop, argument.step
        return slice(*(concrete(b, of) for b in bounds))
    return plain(argument)
