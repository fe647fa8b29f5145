"""`key=value` overrides: what they are made of, and which of them were used."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from vitrewrite.errors import UNPRINTABLE, Span, SpecError
from vitrewrite.text import did_you_mean, listing, shown

from .expressions import Expression, ListOf, Literal, Name, map_expressions
from .inputs import INPUT
from .keys import MODEL_ARGUMENTS, RESERVED
from .model import Model
from .parse import parse_text
from .references import ModelRef
from .scope import Scope
from .selectors import Option
from .source import SpecSource
from .values import Value, bounded, show

COMMAND_LINE = "<command line>"
LIST = "list"  # the kind of an option that takes several values
_QUOTES = "\"'"
_BETWEEN = re.compile(r"\s*[,;x\N{MULTIPLICATION SIGN}]\s*|\s+")
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def parse_override(text: str) -> tuple[str, str]:
    """Splits `key=value`.

    Raises:
        SpecError: VR219 if it is not of that form.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not _KEY.fullmatch(key):
        raise _malformed(text)
    return key, value


def _malformed(text: str) -> SpecError:
    span = Span(COMMAND_LINE, 1, 1, 1, len(text) + 1, text)
    suggestion = "overrides are written key=value, such as rank=4 or lora.rank=4"
    if set(text) & set("[]"):
        suggestion = "a list is one argument: write it without spaces, such as img_size=[64,96]"
    return SpecError("VR219", f"{shown(text)} is no override", span=span, suggestion=suggestion)


def parse_overrides(texts: Iterable[str]) -> dict[str, str]:
    """The overrides of a command line by key.

    Raises:
        SpecError: VR219 if one is malformed or two have one key.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, value = parse_override(text)
        if key in found:
            span = Span(COMMAND_LINE, 1, 1, 1, len(key) + 1, text)
            message = f"{shown(key)} is given twice"
            raise SpecError("VR219", message, span=span, notes=[f"the other is {key}={found[key]}"])
        found[key] = value
    return found


def parse_model(text: str, overrides: Overrides | None = None) -> ModelRef:
    """A model as the command line names it, such as `vit_base(num_classes=10)`.

    Args:
        text: the model.
        overrides: its further arguments.

    Raises:
        SpecError: it is malformed, or an argument has no value.
    """
    statement = parse_text(SpecSource(COMMAND_LINE, f"model {text}"), "statement")
    assert isinstance(statement, Model)
    scope = Scope()
    ref = map_expressions(statement.ref, lambda e: Literal(scope.evaluate(e), e.span))
    return (ref.extended(overrides.options()) if overrides else ref).stated()


class Overrides:
    """The overrides of a run. Values are texts as on a command line, or Python values.

    Raises:
        SpecError: VR219 if a key cannot be one.
    """

    def __init__(self, given: Mapping[str, object]) -> None:
        for key, value in given.items():
            if not _KEY.fullmatch(key):
                raise _malformed(f"{key}={_shortly(value)}")
        self._given = dict(given)
        self._used = {key for key in given if key in RESERVED}
        self.valid: set[str] = set()  # keys that could be used

    def __contains__(self, key: str) -> bool:
        return key in self._given

    def under(self, prefix: str) -> Iterator[str]:
        """The rest of all keys that start with a prefix."""
        return (key[len(prefix) :] for key in self._given if key.startswith(prefix))

    def use(self, key: str, kind: str = "") -> Literal | None:
        """The value for a key, if it is given; for the type str a text is taken as it is.

        Args:
            key: what is asked for.
            kind: its type, `LIST`, or nothing if any value will do.

        Raises:
            SpecError: VR104 for characters that no text should hold, VR204 if a Python value is
                none of the language, or a text looks like a list and is none.
        """
        self.valid.add(key)
        if key not in self._given:
            return None
        self._used.add(key)
        given = self._given[key]
        line = f"{key}={_shortly(given)}"
        span = Span(COMMAND_LINE, 1, len(key) + 2, 1, len(line) + 1, line)
        if not isinstance(given, str):
            return Literal(_language_value(given, key, span), span)
        _refuse_odd_characters(given, span)
        value = _read(given)
        if kind == "str":
            return Literal(value if isinstance(value, str) else given, span)
        if isinstance(value, str) and (meant := _list_meant(given, words=kind == LIST)):
            message = f"{key} cannot be {shown(given)}"
            help_ = f"a list is written in brackets, without spaces: {key}={meant}"
            raise SpecError("VR204", message, span=span, suggestion=help_)
        return Literal(value, span)

    def options(self) -> tuple[Option, ...]:
        """All of them, as arguments of a model.

        Raises:
            SpecError: as `use`.
        """
        found = ((k, self.use(k, "str" if k == INPUT else "")) for k in self._given)
        return tuple(Option(name, value, value.span) for name, value in found if value)

    def model(self) -> ModelRef | None:
        """The model that `model=` gives as text, if it does.

        Raises:
            SpecError: the text is no name of a model.
        """
        given = self._given.get("model")
        return parse_model(given) if isinstance(given, str) else None

    def unused(self) -> Iterator[SpecError]:
        """An error VR218 for each override that names nothing."""
        for key in self._given:
            if key not in self._used:
                known = sorted(self.valid)
                notes = [f"can be overridden: {listing(known) or 'nothing'}"]
                alike = [each for each in known if each.split(".")[-1] == key]
                meant = [*known, *MODEL_ARGUMENTS, *RESERVED]
                near = f"did you mean '{alike[0]}'?" if alike else did_you_mean(key, meant)
                line = f"{key}={_shortly(self._given[key])}"
                span = Span(COMMAND_LINE, 1, 1, 1, len(key) + 1, line)
                message = f"nothing to override is named {shown(key)}"
                yield SpecError("VR218", message, span=span, notes=notes, suggestion=near)


def _refuse_odd_characters(text: str, span: Span) -> None:
    if found := UNPRINTABLE.search(text):
        message = f"character U+{ord(found[0]):04X} is not allowed in a value"
        raise SpecError("VR104", message, span=span)


def _shortly(given: object) -> str:
    try:
        return given if isinstance(given, str) else repr(given)[:200]
    except ValueError:  # an int with more digits than Python prints
        return "..."


def _read(text: str) -> Value:
    """The value of an expression; what is none is a string, so that words need no quotes."""
    try:
        expression = parse_text(SpecSource(COMMAND_LINE, text), "sum")
        if isinstance(expression, ListOf):  # a shell takes the quotes off `["a", "b"]`
            return tuple(_word_or_value(item) for item in expression.items)
        return _word_or_value(expression)
    except SpecError:
        return text


def _list_meant(text: str, *, words: bool) -> str | None:
    """The list that `1024,2048`, `(1, 2)`, `64x64` or `[1, 2` was meant to be.

    Args:
        text: what was given, which is no value of the language.
        words: whether words and a single value can be meant as well, as in `a,b`.
    """
    bare = text.strip().strip("()[]{}").strip()
    items = [each for each in _BETWEEN.split(bare) if each]
    values = [_read(each) for each in items]
    numbers = bool(values) and not any(isinstance(each, (str, tuple)) for each in values)
    if numbers and (words or len(values) > 1 or bare != text.strip()):
        return show(tuple(values)).replace(" ", "")
    if words and (items := [each.strip() for each in bare.split(",") if each.strip()]):
        return f"[{','.join(each.strip(_QUOTES) for each in items)}]"
    return None


def _word_or_value(expression: Expression) -> Value:
    return expression.id if isinstance(expression, Name) else Scope().evaluate(expression)


def _language_value(value: object, key: str, span: Span) -> Value:
    if isinstance(value, str):
        _refuse_odd_characters(value, span)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, Fraction)):
        return bounded(value, span, key)
    if isinstance(value, float) and math.isfinite(value):
        return bounded(Fraction(str(value)), span, key)
    if isinstance(value, (list, tuple)):
        return tuple(_language_value(item, key, span) for item in value)
    notes = ["values are numbers, strings, booleans, None and lists"]
    message = f"{key} cannot be {shown(_shortly(value))}"
    raise SpecError("VR204", message, span=span, notes=notes)
