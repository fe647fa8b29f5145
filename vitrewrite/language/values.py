"""The values of the language: exact numbers, strings, booleans, `none` and lists.

Numbers stay exact (int or Fraction) until a place that wants a float takes them, so `0.31M` is
310000 and `1%` of 13.4G has no rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TypeAlias, TypeGuard

from vitrewrite.errors import Span, SpecError
from vitrewrite.text import shown

Number: TypeAlias = int | float | Fraction
Value: TypeAlias = Number | str | bool | tuple["Value", ...] | None


class PerSite(tuple[Value, ...]):
    """The values of an option at each site of a clause; None where the clause puts nothing."""

    __slots__ = ()


CONSTANTS: Mapping[str, bool | None] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "none": None,
    "None": None,
}
_SUFFIXES = {
    "": Fraction(1),
    "k": Fraction(10**3),
    "K": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "%": Fraction(1, 100),
}
_NUMBER = re.compile(r"([\d_]+(?:\.\d+)?)(?:[eE]([+-]?\d+))?([kKMG%]?)")
_BITS = 1000  # about as large or small as a float can be; keeps `1e999999` and products cheap
_ESCAPES = {'"': '"', "'": "'", "\\": "\\", "n": "\n", "t": "\t"}


def read_number(text: str, span: Span) -> int | Fraction:
    """The exact value of a number as written, such as `0.31M`.

    Raises:
        SpecError: VR107 if it is larger, smaller or more precise than any use has.
    """
    match = _NUMBER.fullmatch(text)
    assert match, text  # the tokenizer lets nothing else through
    mantissa, exponent, suffix = match.groups()
    if len(mantissa) > 60 or len(exponent or "") > 4 or abs(int(exponent or 0)) > 300:
        raise _too_large(text, span)
    value = Fraction(mantissa) * Fraction(10) ** int(exponent or 0) * _SUFFIXES[suffix]
    return bounded(value, span, text)


def bounded(value: Number, span: Span, text: str = "") -> int | Fraction:
    """The number as int where it is integral.

    Raises:
        SpecError: VR107 if it is too large or too precise to be meant.
    """
    exact = Fraction(value)
    if max(exact.numerator.bit_length(), exact.denominator.bit_length()) > _BITS:
        raise _too_large(text, span)
    return exact.numerator if exact.denominator == 1 else exact


def _too_large(text: str, span: Span) -> SpecError:
    note = "numbers have up to 60 digits and exponents from -300 to 300"
    what = f"number {shown(text, 30)}" if text else "the result"
    return SpecError("VR107", f"{what} is out of bounds", span=span, notes=[note])


def read_string(text: str, span: Span) -> str:
    """The value of a string as written, with its quotes.

    Raises:
        SpecError: VR105 for an escape that the language does not have.
    """

    def unescape(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            message = f"no escape {shown(match[0])} in strings"
            notes = [r"the escapes are \" \' \\ \n \t; a backslash is written \\"]
            raise SpecError("VR105", message, span=span, notes=notes)
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", unescape, text[1:-1])


def python_value(value: Value) -> Value:
    """The value as Python code wants it: a number is int if integral, else float."""
    if isinstance(value, tuple):
        return type(value)(python_value(item) for item in value)
    if isinstance(value, Fraction):
        return value.numerator if value.denominator == 1 else float(value)
    return value


def type_name(value: Value) -> str:
    """What the value is, as messages call it."""
    if value is None:
        return "none"
    if isinstance(value, Fraction):
        return "float"
    return "list" if isinstance(value, tuple) else type(value).__name__


def show(value: Value) -> str:
    """The value as the language writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _show_string(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(show, value))}]"
    return _show_fraction(value) if isinstance(value, Fraction) else repr(value)


def _show_string(value: str) -> str:
    for plain, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        value = value.replace(plain, written)
    return f'"{value}"'


def _show_fraction(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    as_float = float(value)
    if Fraction(repr(as_float)) == value:
        return repr(as_float)
    return f"{value.numerator} / {value.denominator}"


def is_number(value: Value) -> TypeGuard[Number]:
    """Whether it is a number; booleans are none here."""
    return not (value is None or isinstance(value, (bool, str, tuple)))


def percent(value: Number) -> str:
    """A ratio as a percentage, such as `1%`."""
    text = show(bounded(Fraction(value) * 100, Span("", 0, 0, 0, 0)))
    return f"{text}%" if text.replace(".", "").isdigit() else show(value)
