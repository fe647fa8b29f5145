"""Selectors: which places of a model a clause is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from vitrewrite.errors import Span

from .conditions import Condition
from .expressions import Expression, literal
from .values import Value


def _integer(expression: Expression | None) -> int | None:
    value = literal(expression) if expression else None
    assert value is None or isinstance(value, int)
    return value


@dataclass(frozen=True)
class Slice:
    """`first:last` or `first:last:step`, as in Python; `*` is a slice without bounds."""

    start: Expression | None
    stop: Expression | None
    step: Expression | None
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        if not (self.start or self.stop or self.step):
            return "*"
        step = f":{self.step}" if self.step else ""
        return f"{self.start or ''}:{self.stop or ''}{step}"

    def positions(self, count: int) -> range:
        """The positions among `count` things; bounds beyond the end are cut, as in Python.

        Raises:
            IndexError: one counts from the end and passes the start: there are no last 13 of 12.
        """
        bounds = slice(_integer(self.start), _integer(self.stop), _integer(self.step))
        for bound in (bounds.start, bounds.stop):
            if bound is not None and bound < -count:
                raise IndexError(bound)
        return range(count)[bounds]


@dataclass(frozen=True)
class Pick:
    """One position; negative ones count from the end."""

    position: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return str(self.position)

    def positions(self, count: int) -> range:
        """The position among `count` things as a range of one.

        Raises:
            IndexError: there are fewer.
        """
        position = _integer(self.position) or 0
        if not -count <= position < count:
            raise IndexError(position)
        return range(position % count, position % count + 1)


@dataclass(frozen=True)
class Index:
    """`[*]`, `[5]`, `[0:6]`, `[1, 3]` and mixtures."""

    items: tuple[Slice | Pick, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"[{', '.join(map(str, self.items))}]"

    @property
    def everything(self) -> bool:
        """Whether it is `[*]`."""
        return str(self) == "[*]"

    def positions(self, count: int) -> tuple[int, ...]:
        """The positions among `count` things, in order and each once.

        Raises:
            IndexError: a single position is beyond the end; it is the exception's argument.
        """
        return tuple(sorted({place for item in self.items for place in item.positions(count)}))


@dataclass(frozen=True)
class PathStep:
    """One part of a path: a name, perhaps indexed, or several names in braces."""

    names: tuple[str, ...]
    index: Index | None
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        name = self.names[0] if len(self.names) == 1 else f"{{{', '.join(self.names)}}}"
        return f"{name}{self.index or ''}"


@dataclass(frozen=True)
class Path:
    """`blocks[*].attn.{q, v}`."""

    steps: tuple[PathStep, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return ".".join(map(str, self.steps))


@dataclass(frozen=True)
class Every:
    """`every linear in blocks`; `within` is None for the whole model."""

    kind: str
    within: Selector | None
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"every {self.kind}" + (f" in {_tight(self.within)}" if self.within else "")


BASE = "base"
"""The kind that `every base` names: each model that the spec stitches."""


@dataclass(frozen=True)
class EveryBase:
    """`every base.blocks[*]`: a path in each model that is stitched; the whole of each without one.

    What it says stands for a union of paths that start at the names of the bases.
    """

    path: Path | None
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"every {BASE}" + (f".{self.path}" if self.path else "")

    def at(self, base: str) -> Path:
        """The same at one base."""
        first = PathStep((base,), None, self.span)
        return Path((first, *(self.path.steps if self.path else ())), self.span)


@dataclass(frozen=True)
class ModuleGlob:
    """`module("blocks.*.attn.qkv")`: modules by their own names; if none matches, parameters."""

    pattern: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"module({self.pattern})"

    @property
    def glob(self) -> str:
        """The pattern of a resolved selector."""
        return str(literal(self.pattern))


@dataclass(frozen=True)
class Option:
    """`name=value`; `span` is that of the name."""

    name: str
    value: Expression
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def values_of(options: tuple[Option, ...]) -> dict[str, Value]:
    """The values of resolved options by name."""
    return {option.name: literal(option.value) for option in options}


@dataclass(frozen=True)
class Call:
    """A selector that measures, such as `sensitive(budget=0.4M, samples=800)`."""

    name: str
    options: tuple[Option, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.options))})"

    @property
    def values(self) -> dict[str, Value]:
        """The options of a resolved selector."""
        return values_of(self.options)


@dataclass(frozen=True)
class Union:
    """`a + b + c`."""

    parts: tuple[Selector, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        # `a + b - c` is `(a + b) - c`, so the first part needs no parentheses.
        return " + ".join(map(str, (_left(self.parts[0]), *map(_term, self.parts[1:]))))


@dataclass(frozen=True)
class Difference:
    """`a - b - c`."""

    start: Selector
    removed: tuple[Selector, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return " - ".join(map(str, (_left(self.start), *map(_term, self.removed))))


@dataclass(frozen=True)
class Intersection:
    """`a & b & c`."""

    parts: tuple[Selector, ...]
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return " & ".join(map(_tight, self.parts))


@dataclass(frozen=True)
class Where:
    """`selector where condition`."""

    selector: Selector
    condition: Condition
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_whole(self.selector)} where {self.condition}"


@dataclass(frozen=True)
class Optional:
    """`optional selector`: to match nothing is no error."""

    selector: Selector
    span: Span = field(compare=False, repr=False)

    def __str__(self) -> str:
        bare = isinstance(self.selector, Where)
        return f"optional {self.selector if bare else _whole(self.selector)}"


Selector: TypeAlias = (
    Path
    | Every
    | EveryBase
    | ModuleGlob
    | Call
    | Union
    | Difference
    | Intersection
    | Where
    | Optional
)


def _tight(node: Selector) -> str:
    whole = isinstance(node, (Path, ModuleGlob, Call))
    return str(node) if whole else f"({node})"


def _term(node: Selector) -> str:
    bare = isinstance(node, (Every, EveryBase, Intersection))
    return str(node) if bare else _tight(node)


def _left(node: Selector) -> str:
    return str(node) if isinstance(node, (Union, Difference)) else _term(node)


def _whole(node: Selector) -> str:
    return f"({node})" if isinstance(node, (Where, Optional)) else str(node)
