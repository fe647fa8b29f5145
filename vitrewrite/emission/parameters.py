"""Constructor arguments of a class, found by comparing its instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .access import is_hidden
from .literals import constant, same
from .names import identifier

Vector = tuple[Any, ...]
"""A value per instance of the class."""


@dataclass
class Parameters:
    """The arguments that tell the instances of a class apart.

    A value that is the same everywhere is a literal; one that follows from an argument by a small
    factor, or as its complement to one, is written in terms of it; any other is a new argument.
    """

    count: int
    reserved: set[str] = field(default_factory=set)  # names of the file
    members: frozenset[str] = frozenset()  # names of children and tensors
    vectors: dict[str, Vector] = field(default_factory=dict)
    stored: set[str] = field(default_factory=set)  # those that the forward reads from `self`

    def express(
        self, vector: Sequence[Any], wish: str, owner: str = "", *, derive: bool = True
    ) -> str:
        """Text for a value per instance.

        Args:
            vector: the values.
            wish: the name of a new argument, if one is needed.
            owner: `self.` in a forward; the constructor then stores the argument.
            derive: whether to write it in terms of another argument where that is possible.
        """
        vector = tuple(vector)
        if all(same(v, vector[0]) for v in vector):
            return constant(vector[0])
        found = self._equal(vector) or (self._derived(vector) if derive else None)
        if found is None or (owner and self._is_member(found[0])):
            name = self._new(wish, vector, own=bool(owner))
            found = (name, "{}")
        name, pattern = found
        if owner:
            self.stored.add(name)
        return pattern.format(f"{owner}{name}")

    def module(self, name: str, modules: Sequence[Any]) -> str:
        """A child that differs in kind between instances is handed in by the parent."""
        return self._new(f"layer{name}" if name.isdigit() else name, tuple(modules))

    def _equal(self, vector: Vector) -> tuple[str, str] | None:
        for name, known in self.vectors.items():
            if not isinstance(known[0], nn.Module) and all(map(same, known, vector)):
                return name, "{}"
        return None

    def _derived(self, vector: Vector) -> tuple[str, str] | None:
        for name, known in self.vectors.items():
            pattern = _relation(known, vector)
            if pattern:
                return name, pattern
        return None

    def _new(self, wish: str, vector: Vector, *, own: bool = False) -> str:
        stem = name = identifier(wish, "value")
        number = 2
        while name in self.vectors or name in self.reserved or (own and self._is_member(name)):
            name, number = f"{stem}{number}", number + 1
        self.vectors[name] = vector
        return name

    def _is_member(self, name: str) -> bool:
        """Whether `self.name` is something else already."""
        return name in self.members or is_hidden(name)

    def value(self, name: str, instance: int) -> Any:
        """The argument that one instance gets."""
        return self.vectors[name][instance]


def _relation(known: Vector, vector: Vector) -> str | None:
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (*known, *vector)):
        return None
    if all(isinstance(v, int) and v for v in (*known, *vector)):
        up, down = vector[0] // known[0], known[0] // vector[0]
        if up > 1 and all(v == up * k for k, v in zip(known, vector, strict=True)):
            return f"{up} * {{}}"
        if down > 1 and all(v * down == k for k, v in zip(known, vector, strict=True)):
            return f"{{}} // {down}"
    if all(isinstance(v, float) and v == 1 - k for k, v in zip(known, vector, strict=True)):
        return "1 - {}"
    return None
