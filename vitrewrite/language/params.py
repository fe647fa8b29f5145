"""Params: their types and bounds, and the values that overrides give them."""

from __future__ import annotations

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .declarations import Choices, Param, Range
from .expressions import Expression, Literal, Name
from .keys import RESERVED
from .overrides import Overrides
from .problems import Problems
from .scope import Scope
from .types import TYPES, Bounds, check_choice, check_range, check_type
from .values import CONSTANTS, Number, Value, is_number, show, type_name

_RESERVED = (*RESERVED, "tune", *CONSTANTS)


def check_new(name: str, span: Span, scope: Scope) -> None:
    """Raises VR212 if a name is reserved, VR210 if it is defined already."""
    if name in _RESERVED:
        message = f"{shown(name)} is reserved and cannot be a name"
        notes = [f"reserved: {listing(_RESERVED, 20)}"]
        raise SpecError("VR212", message, span=span, notes=notes)
    if name in scope.values:
        notes = [f"the first is at {scope.places[name]}"]
        raise SpecError("VR210", f"{shown(name)} is defined twice", span=span, notes=notes)


def param_value(
    param: Param, scope: Scope, overrides: Overrides, problems: Problems
) -> Literal | None:
    """The override for a param or else its default; None if that cannot be known.

    Raises:
        SpecError: VR224 for an unknown type, VR223 for bounds that make no sense.
    """
    if param.type not in TYPES:
        message = f"no type {shown(param.type)}"
        notes = [f"types: {listing(TYPES)}"]
        near = did_you_mean(param.type, TYPES)
        raise SpecError("VR224", message, span=param.type_span, notes=notes, suggestion=near)
    given = overrides.use(param.name, param.type)
    choices = _choices(param, scope, problems)
    if choices is not None:
        scope.choices[param.name] = tuple(choices)
    ends = _range(param, scope, problems)
    default = scope.resolve(param.default, problems, choices or ())
    before = len(problems.errors)
    for value in (default, given):
        if isinstance(value, Literal):
            with problems.catch():
                check_type(value.value, param.type, param.name, value.span)
                check_choice(value.value, choices, param.name, value.span)
                check_range(value.value, ends, param.name, value.span)
    value = given or default
    if not isinstance(value, Literal) or len(problems.errors) > before:
        return None
    return value


def _choices(param: Param, scope: Scope, problems: Problems) -> list[Value] | None:
    if not isinstance(param.bounds, Choices):
        return None
    values = []
    for item in param.bounds.items:
        # A name is a word here: `in {qv, qkv}`.
        word = Literal(item.id, item.span) if isinstance(item, Name) else None
        value = word or scope.resolve(item, problems)
        if isinstance(value, Literal):
            with problems.catch():
                check_type(value.value, param.type, "a choice", value.span)
                values.append(value.value)
    return values


def _range(param: Param, scope: Scope, problems: Problems) -> Bounds:
    bounds = param.bounds
    if not isinstance(bounds, Range):
        return Bounds()
    if param.type not in ("int", "float"):
        message = f"a {param.type} has no range"
        suggestion = "write its choices as in {a, b}"
        raise SpecError("VR223", message, span=bounds.span, suggestion=suggestion)
    low = _end(scope.resolve(bounds.low, problems))
    high = _end(scope.resolve(bounds.high, problems))
    if low is not None and high is not None and low > high:
        message = f"range {show(low)}..{show(high)} is empty"
        suggestion = f"did you mean {show(high)}..{show(low)}?"
        raise SpecError("VR223", message, span=bounds.span, suggestion=suggestion)
    return Bounds(low, high)


def _end(value: Expression) -> Number | None:
    if not isinstance(value, Literal):
        return None
    if is_number(value.value):
        return value.value
    message = f"a range is between numbers, got {type_name(value.value)} {value}"
    raise SpecError("VR223", message, span=value.span)
