"""Types, ranges and choices of values."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fractions import Fraction

from vitrewrite.catalog.signatures import OptionInfo
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .values import Number, PerSite, Value, is_number, show, type_name

TYPES = ("int", "float", "bool", "str")


def fits(value: Value, kind: str) -> bool:
    """Whether a value is of a type; every int is a float, no bool is a number."""
    if kind in ("int", "float"):
        return is_number(value) and (kind == "float" or Fraction(value).denominator == 1)
    return isinstance(value, bool if kind == "bool" else str)


def check_type(value: Value, kind: str, label: str, span: Span) -> None:
    """Raises VR204 unless the value is of the type."""
    if not fits(value, kind):
        message = f"{label} must be {_article(kind)}, got {type_name(value)} {show(value)}"
        quotes = kind == "str" and isinstance(value, (int, bool))
        suggestion = f'write "{show(value)}"' if quotes else None
        raise SpecError("VR204", message, span=span, suggestion=suggestion)


def _article(kind: str) -> str:
    return {"int": "an int", "float": "a number"}.get(kind, f"a {kind}")


@dataclass(frozen=True)
class Bounds:
    """What a number may be: `low` to `high`; `above` and `below` are not allowed themselves."""

    low: Number | None = None
    high: Number | None = None
    above: Number | None = None
    below: Number | None = None

    @classmethod
    def of(cls, info: OptionInfo) -> Bounds:
        """The bounds that an option declares."""
        declared = (info.minimum, info.maximum, info.above, info.below)
        return cls(*map(_exact, declared))

    def nearest(self, value: Number) -> Number | None:
        """None for a number that may be; else the bound that it is beyond."""
        beyond = (
            (self.low, operator.lt),
            (self.above, operator.le),
            (self.high, operator.gt),
            (self.below, operator.ge),
        )
        return next((b for b, is_beyond in beyond if b is not None and is_beyond(value, b)), None)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{show(self.low)}..{show(self.high)}"
        named = (
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        )
        return "must be " + " and ".join(
            f"{words} {show(bound)}" for words, bound in named if bound is not None
        )


def check_range(value: Value, bounds: Bounds, label: str, span: Span) -> None:
    """Raises VR203 unless the value lies within the bounds."""
    nearest = bounds.nearest(value) if is_number(value) else None
    if nearest is None:
        return
    allowed = nearest in (bounds.low, bounds.high)
    suggestion = f"the nearest valid value is {show(nearest)}" if allowed else None
    message = f"{label} = {show(value)} is out of range: {bounds}"
    raise SpecError("VR203", message, span=span, suggestion=suggestion)


def check_choice(value: Value, choices: Collection[Value] | None, label: str, span: Span) -> None:
    """Raises VR205 unless the value is one of the choices."""
    if choices is None or value in choices:
        return
    notes = [f"valid: {listing(map(show, choices))}"]
    suggestion = did_you_mean(str(value), [each for each in choices if isinstance(each, str)])
    message = f"{label} cannot be {shown(value) if isinstance(value, str) else show(value)}"
    raise SpecError("VR205", message, span=span, notes=notes, suggestion=suggestion)


def typed(value: Value, info: OptionInfo, label: str, span: Span) -> Value:
    """The value as the option takes it.

    Raises:
        SpecError: VR203, VR204 or VR205 if it does not.
    """
    if value is None and info.nullable:
        return None
    if not info.many and not (info.either and isinstance(value, tuple)):
        return _item(value, info, label, span)
    if not isinstance(value, tuple):
        message = f"{label} must be a list of {info.type}, got {type_name(value)} {show(value)}"
        raise SpecError("VR204", message, span=span, suggestion=f"write [{show(value)}]")
    return tuple(_item(item, info, f"an item of {label}", span) for item in value)


def typed_per_site(value: tuple[Value, ...], info: OptionInfo, label: str, span: Span) -> PerSite:
    """The values as the option takes them at each site; `none` where nothing is put.

    So does 0, for an option that cannot be 0.

    Raises:
        SpecError: VR203, VR204 or VR205 if the option does not take one of them.
    """
    bounds = Bounds.of(info)

    def absent(item: Value) -> bool:
        return item is None or (is_number(item) and item == 0 and bounds.nearest(item) is not None)

    return PerSite(
        None if absent(item) else typed(item, info, f"{label} at site {number}", span)
        for number, item in enumerate(value)
    )


def is_per_site(value: Value, info: OptionInfo) -> bool:
    """Whether a value of an option is a list with an entry for each site."""
    if not isinstance(value, tuple) or not value:
        return False
    lists = any(isinstance(item, tuple) for item in value)
    return info.either or (lists if info.many else not lists)


def _item(value: Value, info: OptionInfo, label: str, span: Span) -> Value:
    if isinstance(value, str) and info.type != "str" and info.words:
        check_choice(value, info.words, label, span)
        return value
    check_type(value, info.type, label, span)
    check_range(value, Bounds.of(info), label, span)
    check_choice(value, info.choices, label, span)
    if info.type == "float" and is_number(value):
        return float(value)
    return int(value) if info.type == "int" and is_number(value) else value


def _exact(bound: float | None) -> Number | None:
    # 0.1 in a pass and 0.1 in a spec are the same number, although one is a float.
    return None if bound is None or bound in (_INFINITY, -_INFINITY) else Fraction(str(bound))


_INFINITY = float("inf")


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurred before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
