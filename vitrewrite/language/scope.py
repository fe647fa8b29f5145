"""What names mean, and what expressions come to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .expressions import Arithmetic, Called, Expression, ListOf, Literal, Name, Negate
from .problems import Problems
from .values import Number, Value, bounded, is_number, show, type_name


class _DoubtError(Exception):
    """An expression has a name whose definition is malformed, which is reported already."""


class Scope:
    """The params and lets defined so far.

    Attributes:
        doubtful: names whose definitions are malformed.
        incomplete: whether an include failed, so that any name might have been defined there.
        used: names that some expression has.
        choices: what a param may be, of those that have choices.
    """

    def __init__(self, doubtful: Collection[str] = (), incomplete: bool = False) -> None:
        self.values: dict[str, Value] = {}
        self.places: dict[str, Span] = {}
        self.doubtful = set(doubtful)
        self.incomplete = incomplete
        self.used: set[str] = set()
        self.choices: dict[str, tuple[Value, ...]] = {}

    def define(self, name: str, value: Value, place: Span) -> None:
        """Gives a name its meaning."""
        self.values[name] = value
        self.places[name] = place

    def resolve(
        self, expression: Expression, problems: Problems, words: Collection[Value] = ()
    ) -> Expression:
        """The expression as a `Literal`; as it was if it is wrong, which goes to `problems`.

        Args:
            expression: what to evaluate.
            problems: where errors go.
            words: what names that mean nothing else may be, as strings.
        """
        try:
            with problems.catch():
                return Literal(self.evaluate(expression, words), expression.span)
        except _DoubtError:
            pass
        return expression

    def evaluate(self, expression: Expression, words: Collection[Value] = ()) -> Value:
        """The value of an expression.

        Raises:
            SpecError: VR209 for an undefined name, VR213 for impossible arithmetic.
        """
        if isinstance(expression, Literal):
            return expression.value
        if isinstance(expression, Name):
            return self._look_up(expression, words)
        if isinstance(expression, ListOf):
            return tuple(self.evaluate(item, words) for item in expression.items)
        if isinstance(expression, Negate):
            return -_number(self.evaluate(expression.operand), expression.operand)
        if isinstance(expression, Called):
            return self._text(expression)
        value = self.evaluate(expression.first)
        for sign, operand in expression.rest:
            left = _number(value, expression.first)
            right = _number(self.evaluate(operand), operand)
            value = _compute(sign, left, right, expression, operand)
        return value

    def _text(self, called: Called) -> str:
        """What a setting names, with values; a name in it that means nothing else is a word."""

        def value(given: Expression) -> str:
            words = (given.id,) if isinstance(given, Name) else ()
            return show(self.evaluate(given, words))

        arguments = ", ".join(f"{name}={value(given)}" for name, given in called.arguments)
        return f"{called.name}({arguments})"

    def _look_up(self, name: Name, words: Collection[Value]) -> Value:
        self.used.add(name.id)
        if name.id in self.values:
            return self.values[name.id]
        if name.id in words:
            return name.id
        if self.incomplete or name.id in self.doubtful:
            raise _DoubtError
        if words:
            notes = [f"known words: {listing(show(word).strip(chr(34)) for word in words)}"]
        else:
            notes = [f"defined here: {listing(sorted(self.values)) or 'nothing'}"]
        near = did_you_mean(name.id, [*self.values, *(w for w in words if isinstance(w, str))])
        suggestion = near or f'a string is written in quotes: "{name.id}"'
        message = f"nothing is named {shown(name.id)}"
        raise SpecError("VR209", message, span=name.span, notes=notes, suggestion=suggestion)


def _number(value: Value, expression: Expression) -> Number:
    if is_number(value):
        return value
    message = f"cannot calculate with {type_name(value)} {show(value)}"
    raise SpecError("VR213", message, span=expression.span)


_OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Number]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
}


def _compute(
    sign: str, left: Number, right: Number, whole: Arithmetic, operand: Expression
) -> Number:
    if right == 0 and sign in ("/", "//"):
        raise SpecError("VR213", "division by zero", span=operand.span)
    return bounded(_OPERATIONS[sign](Fraction(left), Fraction(right)), whole.span)
