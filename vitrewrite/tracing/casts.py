"""`int` and `float` while tracing: the number of a number stays tracked."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from .numbers import Int, Tracked, apply


class _Cast(type):
    """The built-in type in everything but the cast of a tracked number."""

    kind: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and isinstance(args[0], Tracked):
            same = cls.kind is int and isinstance(args[0], Int)
            return args[0] if same else apply(cls.kind, args)
        return cls.kind(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.kind)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return issubclass(subclass, cls.kind)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.kind

    def __hash__(cls) -> int:
        return hash(cls.kind)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.kind, name)


class integer(metaclass=_Cast):  # noqa: N801
    """What a model's files call `int`."""

    kind = int


class real(metaclass=_Cast):  # noqa: N801
    """What a model's files call `float`."""

    kind = float


_IS = dis.opmap["IS_OP"]
_SEEN: dict[int, tuple[dict[str, Any], frozenset[str]]] = {}


def only_called(space: dict[str, Any]) -> frozenset[str]:
    """Which of `int` and `float` a file never compares with a type by `is`."""
    if id(space) not in _SEEN:
        compared = {name for function in _functions(space) for name in _compared(function)}
        _SEEN[id(space)] = space, frozenset({"int", "float"} - compared)
    return _SEEN[id(space)][1]


def _functions(space: dict[str, Any]) -> Iterator[CodeType]:
    for value in list(space.values()):
        found = [value] if isinstance(value, FunctionType) else []
        if isinstance(value, type) and value.__module__ == space.get("__name__"):
            members = (getattr(v, "__func__", v) for v in vars(value).values())
            found = [v for v in members if isinstance(v, FunctionType)]
        yield from (f.__code__ for f in found if f.__globals__ is space)


def _compared(code: CodeType) -> Iterator[str]:
    for inner in (c for c in code.co_consts if isinstance(c, CodeType)):
        yield from _compared(inner)
    if not {"int", "float"} & set(code.co_names) or _IS not in code.co_code[::2]:
        return
    before = ""
    for step in dis.get_instructions(code):
        if step.opname == "IS_OP" and before:
            yield before
        before = step.argval if step.opname == "LOAD_GLOBAL" else ""
        before = before if before in ("int", "float") else ""
