"""Expressions: the values that options, bounds, indices and conditions are written with.

All nodes of the language are frozen dataclasses with a `span` that does not count in comparisons,
and print as language text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from vitrewrite.errors import Span

from .values import Value, python_value, show


@dataclass(frozen=True)
class Literal:
    """A value as such."""

    value: Value
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return show(self.value)


@dataclass(frozen=True)
class Name:
    """A `param`, a `let`, or a word that an option knows as one of its choices."""

    id: str
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class ListOf:
    """`[a, b]`."""

    items: tuple[Expression, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"


@dataclass(frozen=True)
class Negate:
    """`-a`."""

    operand: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"-{_inside(self.operand)}"


@dataclass(frozen=True)
class Arithmetic:
    """`a + b - c` or `a * b / c // d`, from left to right.

    A chain is one node and not a tower of them, so that depth is limited by brackets alone.
    """

    first: Expression
    rest: tuple[tuple[str, Expression], ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        tail = "".join(f" {sign} {_inside(operand)}" for sign, operand in self.rest)
        return f"{_inside(self.first)}{tail}"


@dataclass(frozen=True)
class Called:
    """`resnet50(weights=pretrained)`: a model that a setting names; its value is a text."""

    name: str
    arguments: tuple[tuple[str, Expression], ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value}' for name, value in self.arguments)})"


Expression: TypeAlias = Literal | Name | ListOf | Negate | Arithmetic | Called


def _inside(node: Expression) -> str:
    # More parentheses than needed never change the meaning, fewer could.
    return f"({node})" if isinstance(node, (Arithmetic, Negate)) else str(node)


def literal(expression: Expression) -> Value:
    """The value of an expression in a resolved spec, as Python code wants it."""
    assert isinstance(expression, Literal), f"not resolved: {expression}"
    return python_value(expression.value)


NodeT = TypeVar("NodeT")


def map_expressions(node: NodeT, change: Callable[[Expression], Expression]) -> NodeT:
    """The same node with `change` applied to every expression in it."""
    return _mapped(node, change)  # type: ignore[no-any-return]


def _mapped(node: Any, change: Callable[[Expression], Expression]) -> Any:
    if isinstance(node, (Literal, Name, ListOf, Negate, Arithmetic, Called)):
        return change(node)
    if isinstance(node, tuple):
        return tuple(_mapped(item, change) for item in node)
    if isinstance(node, Span) or not dataclasses.is_dataclass(node):
        return node
    values = {f.name: _mapped(getattr(node, f.name), change) for f in dataclasses.fields(node)}
    return type(node)(**values)  # type: ignore[misc]
