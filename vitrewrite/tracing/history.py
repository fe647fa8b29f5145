"""The calls that a trace wrote programs for, so that one of them can be traced again by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .template import Template


@dataclass(frozen=True)
class PastCall:
    """A call of a module, the first with its program.

    Attributes:
        template: the program.
        module: what was called.
        path: where it is.
        args: what it was called with.
        kwargs: likewise, by name.
        forward: what ran.
        given: dtypes and devices that the calling forward had read.
        read: those that this forward read: value, node, and attribute ("" for an input).
        trail: what it decided on numbers, in order.
        called: what it called, relative to itself, and what came of it.
    """

    template: Template
    module: nn.Module
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    forward: Callable[..., Any]
    given: list[Any]
    read: list[Any]
    trail: list[Any]
    called: list[tuple[str, Any]]


class History:
    """The calls of one trace, by the program that each has got."""

    def __init__(self) -> None:
        self._calls: dict[int, PastCall] = {}
        self._alike: dict[int, list[Template]] = {}

    def add(self, call: PastCall) -> None:
        """Notes a call."""
        self._calls[id(call.template)] = call

    def join(self, one: Template, *others: Template) -> None:
        """Notes that a program stands for others, too."""
        known = self._alike.setdefault(id(one), [])
        known += [t for t in others if t is not one and all(t is not k for k in known)]

    def __iter__(self) -> Iterator[PastCall]:
        return iter(list(self._calls.values()))

    def of(self, template: Template) -> list[PastCall]:
        """The calls that a program stands for."""
        own = self._calls.get(id(template))
        found = [] if own is None else [own]
        for other in self._alike.get(id(template), []):
            found += [c for c in self.of(other) if all(c is not f for f in found)]
        return found
