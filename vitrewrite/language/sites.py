"""Checks of selectors: indices, groups, calls and conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vitrewrite.catalog.signatures import OptionInfo
from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .check import check_options, check_repeated, check_required, without_effect
from .claims import check_bound
from .conditions import Condition, tests
from .expressions import Expression, Literal
from .problems import Problems
from .selectors import (
    Call,
    Difference,
    Every,
    EveryBase,
    Index,
    Intersection,
    ModuleGlob,
    Path,
    Pick,
    Selector,
    Slice,
    Union,
    Where,
)
from .types import check_type, first_repeated
from .values import show

# No model has a stage, block or row with a larger number; keeps `blocks[0:99999999999]` an error.
INDEX_LIMIT = 100_000

# Selectors that measure, and their options.
CALLS: Mapping[str, Mapping[str, OptionInfo]] = {
    "sensitive": {
        "budget": OptionInfo("budget", "int", False, False, True, minimum=1),
        "samples": OptionInfo("samples", "int", False, False, False, 800, minimum=1),
        "per": OptionInfo("per", "str", False, False, False, "sample", choices=("sample", "batch")),
        "alpha": OptionInfo("alpha", "float", False, False, False, 10.0, above=0),
        "beta": OptionInfo("beta", "float", False, False, False, 5.0, above=0, needs="vectors"),
        "vectors": OptionInfo("vectors", "bool", False, False, False, True),
        "structured_only": OptionInfo("structured_only", "bool", False, False, False, False),
        "scale": OptionInfo("scale", "int", False, False, False, 1_000_000, minimum=1),
    },
}


def check_selector(selector: Selector, problems: Problems) -> None:
    """Checks indices, groups and calls; what is wrong goes to `problems`."""
    for part in parts_of(selector):
        with problems.catch():
            if isinstance(part, Where):
                _check_condition(part.condition, problems)
            elif isinstance(part, (Path, EveryBase)):
                path = part if isinstance(part, Path) else part.path
                for step in path.steps if path else ():
                    _check_group(step.names, step.span)
                    if step.index:
                        _check_index(step.index)
            elif isinstance(part, Call):
                _check_call(part, problems)
            elif isinstance(part, ModuleGlob) and isinstance(part.pattern, Literal):
                check_type(part.pattern.value, "str", "a pattern", part.pattern.span)


def words_of(selector: Selector) -> tuple[str, ...]:
    """What bare words the options of its measuring parts may be, such as `batch`."""
    calls = (part for part in parts_of(selector) if isinstance(part, Call))
    infos = (info for call in calls for info in CALLS.get(call.name, {}).values())
    return tuple(str(choice) for info in infos for choice in info.choices or ())


def parts_of(selector: Selector) -> Iterator[Selector]:
    """A selector and all that it is made of."""
    yield selector
    for inner in _inner(selector):
        yield from parts_of(inner)


def _inner(selector: Selector) -> tuple[Selector, ...]:
    if isinstance(selector, (Union, Intersection)):
        return selector.parts
    if isinstance(selector, Difference):
        return (selector.start, *selector.removed)
    if isinstance(selector, Every):
        return (selector.within,) if selector.within else ()
    inner = getattr(selector, "selector", None)  # of `where` and `optional`
    return (inner,) if inner else ()


def _check_group(names: tuple[str, ...], span: Span) -> None:
    if name := first_repeated(names):
        raise SpecError("VR214", f"{shown(name)} is in the braces twice", span=span)


def _check_index(index: Index) -> None:
    for item in index.items:
        if isinstance(item, Pick):
            _bound(item.position)
        else:
            _check_slice(item)
    picks = [str(item) for item in index.items if isinstance(item, Pick)]
    if repeated := first_repeated(picks):
        raise SpecError("VR214", f"position {repeated} is there twice", span=index.span)


def _check_slice(item: Slice) -> None:
    start, stop, step = _bound(item.start), _bound(item.stop), _bound(item.step)
    if step is not None and step < 1:
        message = f"the step of a slice must be at least 1, got {step}"
        raise SpecError("VR214", message, span=item.span)
    if start is None or stop is None or (start < 0) != (stop < 0):
        return
    if start >= stop:
        message = f"{item} selects nothing: the end is not included"
        suggestion = f"did you mean {stop}:{start}?" if start > stop else f"for one, write {start}"
        raise SpecError("VR214", message, span=item.span, suggestion=suggestion)


def _bound(expression: Expression | None) -> int | None:
    """The value of a resolved index, or None.

    Raises:
        SpecError: VR214 if no position can have the value.
    """
    if not isinstance(expression, Literal):
        return None
    value = expression.value
    if not isinstance(value, int) or isinstance(value, bool):
        message = f"an index must be an int, got {show(value)}"
        raise SpecError("VR214", message, span=expression.span)
    if abs(value) > INDEX_LIMIT:
        message = f"index {shown(value, 20)} is beyond any model"
        raise SpecError("VR214", message, span=expression.span)
    return value


def _check_call(call: Call, problems: Problems) -> None:
    if call.name not in CALLS:
        known = ["module", *CALLS]
        notes = [f"selectors with parentheses: {listing(known)}"]
        suggestion = did_you_mean(call.name, known)
        message = f"no selector {shown(call.name + '()')}"
        raise SpecError("VR215", message, span=call.span, notes=notes, suggestion=suggestion)
    check_repeated(call.options)
    checked = check_options(call.options, CALLS[call.name], call.name, problems)
    for error in without_effect(checked, CALLS[call.name], call.name):
        problems.add(error)
    check_required(call.options, CALLS[call.name], call.name, call.span)


def _check_condition(condition: Condition, problems: Problems) -> None:
    for test in tests(condition):
        with problems.catch():
            if test.compare and test.compare.sign not in ("==", "!="):
                check_bound(test.compare)
