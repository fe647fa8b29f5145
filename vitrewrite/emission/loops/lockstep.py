"""What is made alike, found by walking from some values against the flow in lockstep."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ...tracing.guards import is_guard
from ...tracing.modes import by_mode
from ...tracing.nodes import is_size
from ...tracing.notes import ARITY, ORIGIN
from ...tracing.sizes import by_size
from ..alike import numbered_call
from ..effects import has_effect, may_change
from .rolls import Roll, is_item, spread
from .sweeps import Sweep

Nodes = tuple[fx.Node, ...]  # one for each turn


class UnevenError(Exception):
    """Values that no loop makes."""


@dataclass(frozen=True)
class Items:
    """Items of one tuple, in a row."""

    nodes: Nodes
    owner: fx.Node
    start: int
    step: int


@dataclass(frozen=True)
class Inner:
    """Items of such items, which each loop reads off them."""

    nodes: Nodes
    items: Items
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Loose:
    """Different values from outside."""

    nodes: Nodes


@dataclass(frozen=True)
class Turned:
    """The number of the turn, from `start` on."""

    start: int


@dataclass(frozen=True)
class Children:
    """What a column of calls calls: children of a list in a row, or some by name."""

    targets: tuple[str, ...]
    container: str | None
    start: int = 0
    step: int = 1


@dataclass(eq=False)
class Strand:
    """Nodes that differ in what they read only.

    Attributes:
        arguments: theirs, with patterns in place of what differs.
    """

    nodes: Nodes
    arguments: Any = None
    keywords: Any = None
    children: Children | None = None
    stage: int = 0  # how many loops come before the one that makes it


Leaf = Items | Inner | Loose | Turned | Strand | fx.Node
"""What is read by a column; a node is the same in all turns."""


def is_leaf(pattern: Any) -> bool:
    """Whether it is no structure of patterns."""
    return isinstance(pattern, (Items, Inner, Loose, Turned, Strand, fx.Node))


def leaves(pattern: Any) -> Iterator[Leaf]:
    """All that a pattern is made of."""
    if is_leaf(pattern):
        yield pattern
    elif isinstance(pattern, (tuple, list)):
        for each in pattern:
            yield from leaves(each)
    elif isinstance(pattern, dict):
        yield from leaves(list(pattern.values()))
    elif isinstance(pattern, slice):
        yield from leaves((pattern.start, pattern.stop, pattern.step))


def read_by(column: Strand) -> Iterator[Leaf]:
    """All that a column reads."""
    yield from leaves((column.arguments, column.keywords))


@dataclass
class Lockstep:
    """Columns of one length, each node in one at most."""

    columns: dict[Nodes, Strand] = field(default_factory=dict)
    part_of: dict[fx.Node, Strand] = field(default_factory=dict)

    def pattern(self, values: Sequence[Any]) -> Any:
        """The pattern of values, one for each turn.

        Raises:
            UnevenError: if they are not alike.
        """
        known = dict(self.columns), dict(self.part_of)
        try:
            return self._same(tuple(values), counted=False)
        except UnevenError:
            self.columns, self.part_of = known
            raise

    def _same(self, values: tuple[Any, ...], *, counted: bool) -> Any:
        first = values[0]
        if isinstance(first, fx.Node):
            if not all(isinstance(v, fx.Node) for v in values):
                raise UnevenError
            return first if _is_one(values) else self._nodes(values)
        if any(type(v) is not type(first) for v in values):
            raise UnevenError
        if isinstance(first, (tuple, list)):
            if len({len(v) for v in values}) > 1:
                raise UnevenError
            parts = [self._same(each, counted=counted) for each in zip(*values, strict=True)]
            return parts if isinstance(first, list) else tuple(parts)
        if isinstance(first, dict):
            if any(list(v) != list(first) for v in values):
                raise UnevenError
            return {k: self._same(tuple(v[k] for v in values), counted=counted) for k in first}
        if isinstance(first, slice):
            parts = [(v.start, v.stop, v.step) for v in values]
            return slice(*(self._same(each, counted=False) for each in zip(*parts, strict=True)))
        return _constant(values, counted=counted)

    def _nodes(self, values: Nodes) -> Any:
        if values in self.columns:
            return self.columns[values]
        if len(set(values)) < len(values):
            raise UnevenError
        items = _items(values) or _inner(values)
        if items is not None:
            return items
        known = dict(self.columns), dict(self.part_of)
        try:
            return self._column(values)
        except UnevenError:
            self.columns, self.part_of = known
            return Loose(values)

    def _column(self, values: Nodes) -> Strand:
        first = values[0]
        if not all(map(_is_plain, values)) or any(v in self.part_of for v in values):
            raise UnevenError
        same = ((v.op, ORIGIN.get(v), ARITY.get(v)) for v in values)
        if len(set(same)) > 1:
            raise UnevenError
        children = _children(values)
        if children is None and any(v.target != first.target for v in values):
            raise UnevenError
        column = self.columns[values] = Strand(values, children=children)
        self.part_of |= dict.fromkeys(values, column)
        counted = first.target is operator.getitem
        column.arguments = self._same(tuple(v.args for v in values), counted=counted)
        column.keywords = self._same(tuple(dict(v.kwargs) for v in values), counted=False)
        if is_size(first) and any(v.args[1] != first.args[1] for v in values):
            raise UnevenError
        return column


def _constant(values: tuple[Any, ...], *, counted: bool) -> Any:
    first = values[0]
    if all(v == first or (v != v and first != first) for v in values):
        return first
    if counted and type(first) is int and values == tuple(range(first, first + len(values))):
        return Turned(first)
    raise UnevenError


def _is_one(values: tuple[Any, ...]) -> bool:
    """Whether the values are one, or readings of one parameter."""
    if len(set(values)) == 1:
        return True
    return all(v.op == "get_attr" for v in values) and len({v.target for v in values}) == 1


def _is_plain(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method", "call_module") or is_item(node):
        return False
    special = isinstance(node.target, (Roll, Sweep)) or node.target in (spread, by_mode, by_size)
    return not (special or is_guard(node) or has_effect(node) or may_change(node))


def _items(values: Nodes) -> Items | None:
    if any(v.target is not operator.getitem for v in values):
        return None
    owner, start = values[0].args
    if not isinstance(owner, fx.Node) or not ARITY.on(owner) or not isinstance(start, int):
        return None
    for step in (1, -1):
        if all(v.args == (owner, start + step * i) for i, v in enumerate(values)):
            return Items(values, owner, start, step)
    return None


def _inner(values: Nodes) -> Inner | None:
    """What is read off items of one tuple by the same numbers."""
    owners, keys = values, tuple[int, ...]()
    while True:
        if any(v.target is not operator.getitem for v in owners):
            return None
        items = _items(owners)
        if items is not None:
            return Inner(values, items, keys)
        key = owners[0].args[1]
        if not isinstance(key, int) or any(v.args[1] != key for v in owners):
            return None
        keys = (key, *keys)
        owners = tuple(v.args[0] for v in owners)  # type: ignore[misc]
        if not all(isinstance(o, fx.Node) and ARITY.on(o) for o in owners):
            return None
        if len(set(owners)) < len(owners):
            return None


def _children(values: Nodes) -> Children | None:
    """What calls call, where each calls another child."""
    targets = tuple(str(v.target) for v in values)
    if values[0].op != "call_module" or len(set(targets)) == 1:
        return None
    places = [numbered_call(v) for v in values]
    if places[0] is not None:
        container, start = places[0]
        for step in (1, -1):
            if places == [(container, start + step * i) for i in range(len(places))]:
                return Children(targets, container, start, step)
    return Children(targets, None) if len(set(targets)) == len(targets) else None
