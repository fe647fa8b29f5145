"""Constructor arguments of a class, found by comparing its instances."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .access import is_hidden
from .literals import ANYTHING, Symbol, repeated, same
from .names import identifier

LEAST_TOGETHER = 4
"""So many children of one list are handed in as a list."""

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
    switches: set[str] = field(default_factory=set)  # those that say whether there is something
    stored: set[str] = field(default_factory=set)  # those that the forward reads from `self`
    partial: bool = False  # of some instances alone; see `of`
    together: dict[str, tuple[str, ...]] = field(default_factory=dict)  # see `put_together`

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
        needed = [v for v in vector if v is not ANYTHING]
        if all(same(v, needed[0]) for v in needed):
            return repeated(needed[0]) if needed else "None"
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

    def put_together(self, names: Sequence[str]) -> str | None:
        """One argument, a list, in place of children that are handed in and read in one loop.

        Args:
            names: all that the loop reads, in order.
        """
        least = len(names) >= LEAST_TOGETHER and len(set(names)) == len(names)
        if self.partial or not least or not all(self._is_handed_in(name) for name in names):
            return None
        stem = name = f"{re.sub(r'[0-9]+$', '', names[0])}s"
        number = 2
        while name in self.vectors or name in self.reserved or name in self.together:
            name, number = f"{stem}{number}", number + 1
        self.together[name] = tuple(names)
        return name

    def _is_handed_in(self, name: str) -> bool:
        vector = self.vectors.get(name, ())
        return bool(vector) and all(isinstance(value, nn.Module) for value in vector)

    def of(self, has: Sequence[bool]) -> Parameters:
        """An empty set of arguments for some instances alone."""
        return Parameters(sum(has), self.reserved, self.members, partial=True)

    def if_there(self, text: str, own: Parameters, has: Sequence[bool], wish: str) -> str:
        """Text for what only some instances have, else None.

        Args:
            text: what makes it.
            own: the arguments that the text names.
            has: which instances have it.
            wish: the name of an argument that says so, if none does.
        """
        made: dict[str, str] = {}
        for name, vector in own.vectors.items():
            values = iter(vector)
            made[name] = self.express([next(values) if h else ANYTHING for h in has], name)
        text = re.sub(r"(?<!\.)\b\w+\b(?![(=])", lambda m: made.get(m[0], m[0]), text)
        if text in self.vectors and self.default(text) == "None":
            return text  # it is handed in
        return f"{text} if {self.switch(has, wish)} else None"

    def switch(self, vector: Sequence[bool], wish: str) -> str:
        """A name that is true where `vector` is."""
        for name, known in self.vectors.items():
            plain = not any(isinstance(k, (nn.Module, Symbol)) for k in known)
            if plain and [bool(k) for k in known] == list(vector):
                return name
        made = self._new(wish, tuple(vector))
        self.switches.add(made)
        return made

    def _equal(self, vector: Vector) -> tuple[str, str] | None:
        for name, known in self.vectors.items():
            if not isinstance(known[0], nn.Module) and all(map(_fits, known, vector)):
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
        self.vectors[name] = tuple(None if v is ANYTHING else v for v in vector)
        return name

    def _is_member(self, name: str) -> bool:
        """Whether `self.name` is something else already."""
        return name in self.members or is_hidden(name)

    @property
    def ordered(self) -> list[str]:
        """The arguments as a constructor has them: last those that not every instance needs."""
        return sorted(self.vectors, key=lambda name: self.default(name) is not None)

    def default(self, name: str) -> str | None:
        """The default of an argument that not every instance needs."""
        if any(v is None for v in self.vectors[name]):
            return "None"
        return "False" if name in self.switches else None

    @property
    def arguments(self) -> list[tuple[str, tuple[str, ...]]]:
        """The arguments in order, each with itself or with those that it is in place of."""
        by_key = {key: (name, keys) for name, keys in self.together.items() for key in keys}
        return list(dict.fromkeys(by_key.get(name, (name, (name,))) for name in self.ordered))

    @property
    def head(self) -> list[str]:
        """The arguments with their defaults."""
        pairs = [
            (name, self.default(name if name in self.vectors else keys[0]))
            for name, keys in self.arguments
        ]
        return [f"{name}={default}" if default else name for name, default in pairs]

    def value(self, name: str, instance: int) -> Any:
        """The argument that one instance gets."""
        return self.vectors[name][instance]


def _fits(known: Any, value: Any) -> bool:
    return value is ANYTHING or same(known, value)


def _relation(known: Vector, vector: Vector) -> str | None:
    pairs = [(k, v) for k, v in zip(known, vector, strict=True) if v is not ANYTHING]
    known, vector = zip(*pairs, strict=True)
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
