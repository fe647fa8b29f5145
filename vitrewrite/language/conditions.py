"""Comparisons, and the conditions that `where` makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TypeAlias

from vitrewrite.errors import Span

from .expressions import Expression, Literal, literal
from .values import Number, Value, is_number, percent


@dataclass(frozen=True)
class Compare:
    """A comparison with a bound: `<= 8`, or `within 1% of 13.4G`."""

    sign: str  # <= < >= > == != within
    bound: Expression
    tolerance: Expression | None  # of `within`, a ratio
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        if self.tolerance is None:
            return f"{self.sign} {self.bound}"
        ratio = self.tolerance.value if isinstance(self.tolerance, Literal) else None
        tolerance = percent(ratio) if is_number(ratio) else str(self.tolerance)
        return f"within {tolerance} of {self.bound}"

    def holds(self, measured: Value) -> bool:
        """Whether a measured value compares so; what cannot be compared does not."""
        bound = literal(self.bound)
        if self.sign in ("==", "!="):
            return (measured == bound) == (self.sign == "==")
        if not (is_number(measured) and is_number(bound)):
            return False
        if self.sign == "within":
            return self._near(measured)
        if self.sign.endswith("=") and measured == bound:
            return True
        return measured < bound if self.sign.startswith("<") else measured > bound

    def _near(self, measured: Number) -> bool:
        assert isinstance(self.bound, Literal)
        assert isinstance(self.tolerance, Literal)
        bound, tolerance = self.bound.value, self.tolerance.value
        if not (is_number(bound) and is_number(tolerance) and math.isfinite(measured)):
            return False
        # In exact numbers, so that a value on the edge counts as near.
        allowed = abs(Fraction(tolerance) * Fraction(bound))
        return abs(Fraction(measured) - Fraction(bound)) <= allowed


@dataclass(frozen=True)
class Test:
    """`dim >= 384`, or an attribute alone, which must be true of the site."""

    attribute: str
    compare: Compare | None
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.attribute} {self.compare}" if self.compare else self.attribute

    def holds(self, attributes: Mapping[str, Value]) -> bool:
        """Whether it is true of a site with these attributes."""
        value = attributes[self.attribute]
        return self.compare.holds(value) if self.compare else bool(value)


@dataclass(frozen=True)
class Not:
    """`not condition`."""

    operand: Condition
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"not {_simple(self.operand)}"

    def holds(self, attributes: Mapping[str, Value]) -> bool:
        """Whether it is true of a site with these attributes."""
        return not self.operand.holds(attributes)


@dataclass(frozen=True)
class Both:
    """`a and b and c`."""

    parts: tuple[Condition, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return " and ".join(map(_simple, self.parts))

    def holds(self, attributes: Mapping[str, Value]) -> bool:
        """Whether it is true of a site with these attributes."""
        return all(part.holds(attributes) for part in self.parts)


@dataclass(frozen=True)
class Either:
    """`a or b or c`."""

    parts: tuple[Condition, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return " or ".join(map(_simple, self.parts))

    def holds(self, attributes: Mapping[str, Value]) -> bool:
        """Whether it is true of a site with these attributes."""
        return any(part.holds(attributes) for part in self.parts)


Condition: TypeAlias = Test | Not | Both | Either


def _simple(node: Condition) -> str:
    return str(node) if isinstance(node, Test) else f"({node})"


def tests(condition: Condition) -> Iterator[Test]:
    """All tests in a condition, to check the attributes they name."""
    if isinstance(condition, Test):
        yield condition
    elif isinstance(condition, Not):
        yield from tests(condition.operand)
    else:
        for part in condition.parts:
            yield from tests(part)
