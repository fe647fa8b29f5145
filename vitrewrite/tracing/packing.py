"""Tuples that a source hands to a module: captured item by item, printed as one argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import fx

from .notes import ARGUMENT, HINT, PART, WIRED
from .numbers import Tracked

Nest: TypeAlias = "tuple[Nest, ...] | None"
"""None for one value, or what each item of a tuple is."""


@dataclass(frozen=True)
class Packing:
    """Which inputs of a program are one argument.

    Attributes:
        arguments: what each argument is.
    """

    arguments: tuple[Nest, ...] = ()

    def __bool__(self) -> bool:
        return any(nest is not None for nest in self.arguments)

    @property
    def more(self) -> int:
        """How many more inputs than arguments there are."""
        return sum(map(count, self.arguments)) - len(self.arguments)

    def packed(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments made of the values of all inputs; the last ones may be left out."""
        found: list[Any] = []
        at = 0
        for nest in self.arguments:
            if at < len(values):
                found.append(_nested(nest, iter(values[at : at + count(nest)])))
            at += count(nest)
        return (*found, *values[at:])

    def flat(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The values of all inputs, given the arguments."""
        pairs = zip(arguments, self.arguments, strict=False)
        return tuple(item for value, nest in pairs for item in _items(value, nest))


def count(nest: Nest) -> int:
    """How many values an argument is made of."""
    return 1 if nest is None else sum(map(count, nest))


def _nested(nest: Nest, values: Iterator[Any]) -> Any:
    return next(values) if nest is None else tuple(_nested(inner, values) for inner in nest)


def _items(value: Any, nest: Nest) -> Iterator[Any]:
    if nest is None:
        yield value
        return
    for item, inner in zip(value, nest, strict=True):
        yield from _items(item, inner)


PLAIN = Packing()
"""Each input is an argument of its own."""


def places(value: Any) -> Iterator[tuple[int, ...]]:
    """Where tensors and tracked numbers stand in nested tuples and lists."""
    if isinstance(value, (torch.Tensor, Tracked)):
        yield ()
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            yield from ((number, *place) for place in places(item))


def packing(graph: fx.Graph) -> Packing:
    """How the inputs of a program are to be handed over, as far as they stand together."""
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    found: list[Nest] = []
    wired = _numbered(inputs)
    for whole, group in groupby(inputs, lambda n: _argument(n, wired)):
        members = list(group)
        places = [PART.get(n) or (wired[n],) for n in members] if whole is not None else []
        nest = _nest(places) if places else None
        found += [nest] if nest is not None else [None] * len(members)
    return Packing(tuple(found)) if any(found) else PLAIN


def _argument(node: fx.Node, wired: dict[fx.Node, int]) -> str | None:
    """The argument that an input is a part of."""
    if node in wired:
        return numbered(str(HINT.get(node)))[0]
    return ARGUMENT.get(node) if PART.on(node) else None


def _numbered(inputs: list[fx.Node]) -> dict[fx.Node, int]:
    """Inputs that clauses added and that have names with numbers from 0 on, with these."""
    found: dict[fx.Node, int] = {}
    for _, group in groupby(
        inputs, lambda n: numbered(str(HINT.get(n)))[0] if WIRED.get(n) else None
    ):
        members = list(group)
        numbers = [numbered(str(HINT.get(n)))[1] for n in members]
        if len(members) > 2 and numbers == list(range(len(members))):
            found |= {node: i for i, node in enumerate(members)}
    return found


def numbered(name: str) -> tuple[str, int]:
    """`position` and 2 for `position_2`; -1 if there is no number."""
    stem, _, number = name.rpartition("_")
    return (stem, int(number)) if stem and number.isdecimal() else (name, -1)


def _nest(paths: list[tuple[int, ...]]) -> Nest:
    """The nest of what stands at some places, in order; what is not there is left out."""
    if () in paths or paths != sorted(set(paths)):
        return None
    groups = [[p[1:] for p in each] for _, each in groupby(paths, lambda p: p[0])]
    if len(groups) == 1:
        return None if groups == [[()]] else _nest(groups[0])
    return tuple(None if inner == [()] else _nest(inner) for inner in groups)
