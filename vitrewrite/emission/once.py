"""What is asked of the same modules again and again, while their programs stay what they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

Value = TypeVar("Value")
_ANSWERS: ContextVar[dict[Any, Any] | None] = ContextVar("answers", default=None)


@contextmanager
def settled() -> Iterator[None]:
    """In here no module or template that is asked about is changed, nor let go of."""
    before = _ANSWERS.set({})
    try:
        yield
    finally:
        _ANSWERS.reset(before)


def once(function: Callable[[Any], Value]) -> Callable[[Any], Value]:
    """Looks an answer up, where nothing changes; elsewhere it is found anew each time."""

    @functools.wraps(function)
    def answer(about: Any) -> Value:
        known = _ANSWERS.get()
        if known is None:
            return function(about)
        key = function, id(about)
        if key not in known:
            known[key] = function(about)
        found: Value = known[key]
        return found

    return answer
