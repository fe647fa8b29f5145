"""`if CONDITION` at the end of a clause or claim: whether it is there."""

from __future__ import annotations

from vitrewrite.errors import SpecError
from vitrewrite.text import shown

from .claims import check_bound
from .conditions import Condition, Test, tests
from .expressions import Literal, Name, literal, map_expressions
from .problems import Problems
from .scope import Scope
from .types import check_choice
from .values import Value, is_number, show, type_name

# What depends on the value of a param. A clause that is not there may say `rank=rank` with a rank
# that its pass does not take: that is what the condition keeps away.
OF_VALUES = frozenset({"VR107", "VR203", "VR204", "VR205", "VR213", "VR214"})


def false_for(
    condition: Condition | None, scope: Scope, problems: Problems
) -> dict[str, Value] | None:
    """The values that make a condition false; None if it holds, is wrong, or there is none.

    Args:
        condition: what follows `if`, over params and lets.
        scope: their values.
        problems: where errors go: VR209 for a name that is none, VR204 for values that do not
            compare, VR205 for a word that the param never is.
    """
    if condition is None:
        return None
    before = len(problems.errors)
    names = {test.attribute: test.span for test in tests(condition)}
    found = {name: scope.resolve(Name(name, span), problems) for name, span in names.items()}
    words = [word for name in names for word in scope.choices.get(name, ())]
    resolved = map_expressions(condition, lambda e: scope.resolve(e, problems, words))
    values = {name: literal(each) for name, each in found.items() if isinstance(each, Literal)}
    known = [test for test in tests(resolved) if test.attribute in values and _resolved(test)]
    for test in known:
        with problems.catch():
            _check(test, values[test.attribute], scope)
    complete = len(known) == sum(1 for _ in tests(resolved))
    if not complete or len(problems.errors) > before or resolved.holds(values):
        return None
    return values


def _resolved(test: Test) -> bool:
    parts = (test.compare.bound, test.compare.tolerance) if test.compare else ()
    return all(part is None or isinstance(part, Literal) for part in parts)


def _check(test: Test, value: Value, scope: Scope) -> None:
    name, compare = test.attribute, test.compare
    if compare is None:
        if not isinstance(value, bool):
            message = f"{shown(name)} is {show(value)}, which is neither true nor false"
            near = f"compare it, as in 'if {name} == {show(value)}'"
            raise SpecError("VR204", message, span=test.span, suggestion=near)
        return
    bound, span = literal(compare.bound), compare.bound.span
    if compare.sign not in ("==", "!="):
        if not is_number(value):
            message = f"{shown(name)} is {type_name(value)} {show(value)}, and only numbers have"
            near = "use == or !="
            raise SpecError("VR204", f"{message} an order", span=test.span, suggestion=near)
        check_bound(compare)
    elif _kind(value) != _kind(bound):
        message = f"{shown(name)} is {type_name(value)} {show(value)}, and {type_name(bound)}"
        raise SpecError("VR204", f"{message} {show(bound)} never equals it", span=span)
    check_choice(bound, scope.choices.get(name), name, span)


def _kind(value: Value) -> str:
    return "number" if is_number(value) else type_name(value)
