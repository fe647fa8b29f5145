"""Sizes that remember where they came from.

`tensor.shape` of a traced tensor yields `Int`s: real `int`s (so argument parsers, `range` and `%`
accept them) that carry how to compute them again. Arithmetic is recorded; a comparison decides
the control flow of the trace and becomes a guard. Every exit from tracking that Python lets
see (`hash`, `int(...)`) guards that the value stays what it was. Formatting is free, as it feeds
messages, and C code takes the plain number unseen (`range`, numpy): what comes of that shows where
the trace is compared with one under other sizes.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .frame import Frame

Deps = frozenset[int]
"""The witnesses (by index) under which a number differs from the primary trace."""


class Tracked:
    """What `Int` and `Float` share: witnesses, dependencies and a recipe for the node."""

    frame: Frame
    witnesses: tuple[Any, ...]  # the same number in each further witness, None once that is dead
    deps: Deps
    recipe: Callable[[], Any]  # makes the node in `frame`
    hint: str | None

    def _guard(self, op: Callable[..., Any], *others: object) -> bool:
        outcome = bool(op(plain(self), *map(plain, others)))
        self.frame.recorder.guard(op, (self, *others), outcome)
        return outcome

    def _decide(self, op: Callable[..., Any], *others: object) -> bool:
        """A comparison that the forward may go on from in either way."""
        outcome = bool(op(plain(self), *map(plain, others)))
        return self.frame.recorder.decide(op, (self, *others), outcome)

    def _exit(self) -> Any:
        value = plain(self)
        self._guard(operator.eq, value)
        return value

    def __hash__(self) -> int:
        return hash(self._exit())

    def __bool__(self) -> bool:
        return self._decide(operator.ne, 0)

    def __int__(self) -> int:
        return int(self._exit())

    def __float__(self) -> float:
        return float(self._exit())

    def __reduce__(self) -> Any:  # copies of a number are plain
        return type(plain(self)), (self._exit(),)


class Int(Tracked, int):
    """An `int` with a recipe."""

    __hash__ = Tracked.__hash__


class Float(Tracked, float):
    """A `float` with a recipe."""

    __hash__ = Tracked.__hash__


def plain(x: object) -> Any:
    """The number without its tracking."""
    if isinstance(x, Int):
        return int.__int__(x)
    return float.__float__(x) if isinstance(x, Float) else x


def exited(x: Any) -> Any:
    """The plain number, which from here on must stay what it is."""
    return x._exit() if isinstance(x, Tracked) else x


def make(
    frame: Frame, value: int | float, witnesses: tuple[Any, ...], recipe: Callable[[], Any]
) -> Any:
    """A tracked number; `bool`s and other results of arithmetic come back as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number: Any = Int(value) if isinstance(value, int) else Float(value)
    number.frame, number.witnesses, number.recipe, number.hint = frame, witnesses, recipe, None
    number.deps = frozenset(i for i, w in enumerate(witnesses) if w is not None and w != value)
    return number


def apply(op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """`op(*args)` on numbers, recorded in the frame that is open now."""
    if len(args) == 2 and (same := _unchanged(op, *args)) is not None:
        return same
    tracked = [a for a in args if isinstance(a, Tracked)]
    recorder = tracked[0].frame.recorder
    frame = recorder.frame
    value = op(*map(plain, args))
    witnesses = tuple(
        _evaluate(op, [a.witnesses[i] if isinstance(a, Tracked) else a for a in args])
        for i in range(len(tracked[0].witnesses))
    )
    result = make(frame, value, witnesses, lambda: frame.emit_function(op, frame.arg(args)))
    if isinstance(result, Tracked):  # keeps `x % 7` dependent even where witnesses agree on it
        alive = [a.deps for a in tracked]
        result.deps = frozenset().union(*alive)
    return result


def minimum(*args: Any, **kwargs: Any) -> Any:
    """`min`, recorded where all operands are numbers."""
    return _extreme(min, args, kwargs)


def maximum(*args: Any, **kwargs: Any) -> Any:
    """`max`, recorded where all operands are numbers."""
    return _extreme(max, args, kwargs)


def length(x: Any) -> Any:
    """`len`, recorded for tensors."""
    return x.size(0) if isinstance(x, torch.Tensor) and x.dim() else len(x)


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `math`, recorded where its operands are tracked."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracked = any(isinstance(a, Tracked) for a in args)
        if kwargs or not tracked or _foreign(args):
            return function(*args, **kwargs)
        return apply(function, args)

    return call


def product(values: Any, *, start: Any = 1) -> Any:
    """`math.prod`, one product after the other."""
    for value in values:
        start = start * value
    return start


def _extreme(op: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    several = len(args) == 1 and isinstance(args[0], (tuple, list)) and not kwargs
    operands = tuple(args[0]) if several else args
    tracked = any(isinstance(a, Tracked) for a in operands)
    if kwargs or not tracked or len(operands) < 2 or _foreign(operands):
        return op(*args, **kwargs)
    return apply(op, operands)


_NEUTRAL = {operator.add: 0, operator.sub: 0, operator.mul: 1, operator.floordiv: 1}


def _unchanged(op: Callable[..., Any], a: Any, b: Any) -> Any:
    """The size that `op` gives back: `0 + n` (as `sum` starts), `n - 0`, `1 * n`."""
    if op not in _NEUTRAL:
        return None
    if isinstance(a, Int) and type(b) is int and b == _NEUTRAL[op]:
        return a
    commutes = op in (operator.add, operator.mul) and isinstance(b, Int)
    return b if commutes and type(a) is int and a == _NEUTRAL[op] else None


def _evaluate(op: Callable[..., Any], args: list[Any]) -> Any:
    if any(a is None for a in args):
        return None
    try:
        return op(*args)
    except (ArithmeticError, ValueError):
        return None


def _forward(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: NotImplemented if _foreign(args) else apply(op, args)


def _reverse(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: NotImplemented if _foreign((b,)) else apply(op, (b, a))


def _compare(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: NotImplemented if _foreign((b,)) else a._decide(op, b)


def _foreign(args: tuple[Any, ...]) -> bool:
    return not all(isinstance(a, (int, float)) for a in args)


def _exiting(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self._exit(), name)(*args)


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_EXITS = ("and", "or", "xor", "lshift", "rshift")
_METHODS = {  # which would give plain numbers
    Int: ("__invert__", "bit_length", "bit_count", "to_bytes", "as_integer_ratio", "conjugate"),
    Float: ("hex", "as_integer_ratio", "conjugate"),
}
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": operator.abs,
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
}
_OTHERS: dict[str, Callable[..., Any]] = {
    "__divmod__": lambda a, b: (a // b, a % b),
    "is_integer": _exiting("is_integer"),
}
for _cls in (Int, Float):
    for _name in _BINARY:
        setattr(_cls, f"__{_name}__", _forward(getattr(operator, _name)))
        setattr(_cls, f"__r{_name}__", _reverse(getattr(operator, _name)))
    for _name, _op in _UNARY.items():
        setattr(_cls, f"__{_name}__", _forward(_op))
    for _name, _op in _OTHERS.items():
        setattr(_cls, _name, _op)
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_cls, f"__{_name}__", _compare(getattr(operator, _name)))
    for _name in _METHODS[_cls]:
        setattr(_cls, _name, _exiting(_name))
    for _name in ("real", "numerator") if _cls is Int else ("real",):
        setattr(_cls, _name, property(lambda self: self))
for _name in _EXITS:
    setattr(Int, f"__{_name}__", _exiting(f"__{_name}__"))
    setattr(Int, f"__r{_name}__", _exiting(f"__r{_name}__"))
