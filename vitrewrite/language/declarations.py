"""Statements that define names, and the one that brings in those of another spec."""

from __future__ import annotations

from dataclasses import dataclass, field

from vitrewrite.errors import Span

from .expressions import Expression
from .selectors import Option
from .values import show


def written(name: str, options: tuple[Option, ...]) -> str:
    """A name with its options, as `lora(rank=8)`."""
    return f"{name}({', '.join(map(str, options))})"


@dataclass(frozen=True)
class Range:
    """`1..64`, both ends included."""

    low: Expression
    high: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.low}..{self.high}"


@dataclass(frozen=True)
class Choices:
    """`{a, b}`; names in it are words, not variables."""

    items: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{{{', '.join(map(str, self.items))}}}"


@dataclass(frozen=True)
class Param:
    """`param rank: int = 8 in 1..64`: a value that the command line can override."""

    name: str
    type: str
    default: Expression
    bounds: Range | Choices | None
    span: Span = field(compare=False, repr=False)
    name_span: Span = field(compare=False, repr=False)
    type_span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        bounds = f" in {self.bounds}" if self.bounds else ""
        return f"param {self.name}: {self.type} = {self.default}{bounds}"


@dataclass(frozen=True)
class Let:
    """`let half = rank // 2`."""

    name: str
    value: Expression
    span: Span = field(compare=False, repr=False)
    name_span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"let {self.name} = {self.value}"


@dataclass(frozen=True)
class Include:
    """`include "other.peft"` or `include other(rank=4)`: a shipped spec, with values of params."""

    target: str
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        name = show(self.target)
        return f"include {written(name, self.options) if self.options else name}"
