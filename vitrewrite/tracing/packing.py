"""Tuples that a source hands to a module: captured item by item, printed as one argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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

    def packed(self, values: Sequence[Any], make: Callable[[tuple[Any, ...]], Any] = tuple) -> Any:
        """The arguments made of the values of all inputs; `make` makes a tuple of its items."""
        rest = iter(values)

        def nested(nest: Nest) -> Any:
            return next(rest) if nest is None else make(tuple(map(nested, nest)))

        return (*map(nested, self.arguments), *rest)

    def flat(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """The values of all inputs, given the arguments."""

        def items(value: Any, nest: Nest) -> Iterator[Any]:
            if nest is None:
                yield value
            else:
                for item, inner in zip(value, nest, strict=True):
                    yield from items(item, inner)

        return tuple(
            item
            for value, nest in zip(arguments, self.arguments, strict=True)
            for item in items(value, nest)
        )


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
