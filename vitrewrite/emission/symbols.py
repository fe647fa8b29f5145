"""Values that stand for tensors while a printed forward, or its graph, is gone through for proof.

Whatever is computed of them becomes a term; equal computations of equal values are one term, by
number. So two programs are the same if they yield the same terms. Sizes are the numbers that they
were when the model was captured. A change in place gives a value another term, and everything
that looks at the same memory another version.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..tracing.numbers import plain
from ..tracing.operators import draws, is_inplace
from .expressions import INPLACE, from_start, named
from .tidy import takes_all

VIEWS = frozenset({
    "view", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "expand", "flatten",
    "unflatten", "unbind", "chunk", "split", "tensor_split", "narrow", "select", "detach",
    "contiguous", "expand_as", "view_as", "movedim", "swapaxes", "t", "diagonal", "unfold", "to",
    "float", "type_as", "getitem", "T", "mT", "real", "imag", "view_as_real", "view_as_complex",
    "dropout", "relu",
})  # fmt: skip
"""What may give back memory that it was given."""

_METHODS = {method: function for function, (_, method) in INPLACE.items()}


@dataclass(frozen=True)
class Number:
    """What a value that is read off a tensor was when the model was captured."""

    value: int | float


_COMPARE = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_LIMITS = "the limits of a dtype"


class UnprovedError(Exception):
    """A printed program computes something that its graph does not."""


class UnknownError(Exception):
    """A printed program that symbols cannot go through: nothing is known of it."""


@dataclass
class Storage:
    """What several values may look at.

    Attributes:
        version: how often it was changed.
    """

    version: int = 0


@dataclass
class Terms:
    """The terms of two programs that are compared: first of a graph, then of what was printed.

    Attributes:
        number: of each term.
        known: what a term is, as far as the graph tells: a tensor on meta, or how many items.
        open: whether terms may be added; else a new one is a difference.
        moment: how many effects there were so far in the program that runs now.
        state: the memory of parameters, buffers and items of tuples.
    """

    number: dict[Hashable, int] = field(default_factory=dict)
    known: dict[int, Any] = field(default_factory=dict)
    open: bool = True
    moment: int = 0
    state: dict[Hashable, Storage] = field(default_factory=dict)

    def close(self) -> int:
        """From here on, the other program runs; how many effects the first one had."""
        ended, self.moment, self.open, self.state = self.moment, 0, False, {}
        return ended

    def freely(self, made: Callable[[], Any]) -> Any:
        """What is read rather than computed may be read anywhere."""
        was, self.open = self.open, True
        try:
            return made()
        finally:
            self.open = was

    def of(self, key: Hashable, what: str) -> int:
        """The number of a term.

        Raises:
            UnprovedError: if it is new, and the graph has been gone through.
        """
        if key not in self.number and not self.open:
            raise UnprovedError(f"{what} is not what the graph computes there")
        return self.number.setdefault(key, len(self.number))

    def apply(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a function, or of a method if `target` is its name."""
        if isinstance(target, str) and not kwargs:
            target, args = _operator(target, args)
        if target in (operator.eq, operator.ne) and isinstance(args[1], torch.dtype):
            known = args[0].value  # only a check asks for it, which the graph goes through without
            if isinstance(known, torch.dtype):
                return target(known, args[1])
        if _does_nothing(target, args):
            return args[0]
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        kwargs = named(target, kwargs)
        effect = is_inplace(target) or draws(target, args, kwargs)
        key = (target, frozen(args), frozen(kwargs), self.moment if effect else None)
        self.moment += effect
        term = self.of(key, name)
        if target in (torch.finfo, torch.iinfo):
            self.known[term] = _LIMITS
        if target in _COMPARE:
            sides = [a.value if isinstance(a, Symbolic) else Number(a) for a in args]
            if all(isinstance(side, Number) for side in sides):
                self.known[term] = bool(target(*(side.value for side in sides)))
        first = args[0] if args and isinstance(args[0], Symbolic) else None
        if first is not None and is_inplace(target):
            first.change(term)
            return None if target is operator.setitem else first
        if first is not None and name in VIEWS:
            return Symbolic(self, term, first.memory, views=True)
        return Symbolic(self, term)


def _does_nothing(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a call returns the tensor that it is given, and is not printed."""
    value = args[0].value if args and isinstance(args[0], Symbolic) else None
    if not isinstance(value, torch.Tensor):
        return False
    if target == "bool":
        return value.dtype == torch.bool
    return target is operator.getitem and takes_all(args[1])


def _operator(name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """The operator that a method is, as `x.add_(y)` is `x += y` and `x.__rpow__(2)` is `2 ** x`."""
    if name in _METHODS and len(args) == 2:
        return _METHODS[name], args
    plain = name.strip("_") if name.startswith("__") else ""
    if plain and hasattr(operator, f"__{plain}__"):
        return getattr(operator, f"__{plain}__"), args
    if plain.startswith("r") and len(args) == 2 and hasattr(operator, f"__{plain[1:]}__"):
        return getattr(operator, f"__{plain[1:]}__"), args[::-1]
    return name, args


class Symbolic:
    """Stands for a tensor, a tuple of them, or another value that is known when a model runs."""

    def __init__(
        self, terms: Terms, term: int, memory: Storage | None = None, *, views: bool = False
    ) -> None:
        self._terms, self._term, self._first = terms, term, term
        self._before: Any = None  # what was known of it before it was changed
        self.memory = memory or Storage()
        self._views = views  # whether what is taken of it is in its memory

    @property
    def term(self) -> int:
        """The number of what it is now."""
        return self._term

    @property
    def value(self) -> Any:
        """What the graph tells of it."""
        return self._terms.known.get(self._term, self._before)

    @property
    def count(self) -> int | None:
        """How many items it has, if it is a tuple."""
        value = self.value
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def change(self, term: int) -> None:
        """It was changed in place; its shape stays, unless the graph tells another."""
        self._before, self._term = self.value, term
        self.memory.version += 1

    def __getattr__(self, name: str) -> Any:
        value = self.value
        if isinstance(value, torch.Tensor) and name in ("shape", "ndim", "size", "dim", "numel"):
            return getattr(value, name)
        if name == "shape" and value is None:
            return _Shape(self)
        if name in ("dtype", "device"):  # which no change in place changes
            term = self._terms.of((name, self._first), name)
            if name == "dtype" and isinstance(value, torch.Tensor):
                self._terms.known.setdefault(term, value.dtype)
            return Symbolic(self._terms, term)
        if value is _LIMITS or self.count is not None or not _is_method(name):
            return self._terms.apply(getattr, (self, name), {})
        return lambda *args, **kwargs: self._terms.apply(name, (self, *args), kwargs)

    def __iter__(self) -> Iterator[Any]:
        if self.count is None:
            raise UnknownError("a value whose number of items is not known is gone through")
        return (self[i] for i in range(self.count))

    def __getitem__(self, index: Any) -> Any:
        if self.count is None:
            return self._terms.apply(operator.getitem, (self, index), {})
        if isinstance(index, slice):
            return tuple(self)[index]
        terms, key = self._terms, ("item", self._term, range(self.count)[index])
        term = terms.freely(lambda: terms.of(key, "an item"))
        own = self.memory if self._views else terms.state.setdefault(key, Storage())
        return Symbolic(terms, term, own)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._terms.apply(operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return len(self.value) if self.count is None else self.count

    def __bool__(self) -> bool:
        if isinstance(self.value, bool):
            return self.value
        raise UnknownError("a value decides what is computed")

    __hash__ = None  # type: ignore[assignment]


class _Shape:
    """The sizes of a tensor of which the graph does not tell them: each is a value, too."""

    def __init__(self, tensor: Symbolic) -> None:
        self._tensor = tensor

    def __getitem__(self, dim: int) -> Any:
        return self._tensor.size(dim)


def _is_method(name: str) -> bool:
    return callable(getattr(torch.Tensor, name, None))


def _operation(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: self._terms.apply(function, (self, *args), {})


def _reversed(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: self._terms.apply(function, (other, self), {})


_BOTH_SIDES = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
_ONE_SIDE = "eq ne lt le gt ge neg invert pos abs"
for _name in _BOTH_SIDES.split():
    _function = getattr(operator, f"__{_name}__")
    setattr(Symbolic, f"__{_name}__", _operation(_function))
    setattr(Symbolic, f"__r{_name}__", _reversed(_function))
for _name in _ONE_SIDE.split():
    setattr(Symbolic, f"__{_name}__", _operation(getattr(operator, _name)))
for _function, (_, _name) in INPLACE.items():
    setattr(Symbolic, f"__{_function.__name__}__", _operation(_function))


def frozen(value: Any) -> Hashable:
    """A value as part of a term."""
    if isinstance(value, Symbolic):
        if value.count is not None:  # a tuple is its items
            return ("tuple", *map(frozen, value))
        return ("symbol", value.term, value.memory.version)
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (tuple, list)):
        return ("list" if isinstance(value, list) else "tuple", *map(frozen, value))
    if isinstance(value, dict):
        return ("dict", *((k, frozen(v)) for k, v in value.items()))
    if isinstance(value, slice):
        value = from_start(value)
        return ("slice", frozen(value.start), frozen(value.stop), frozen(value.step))
    value = plain(value.item() if type(value).__module__ == "numpy" else value)
    if isinstance(value, float):
        return ("float", float.hex(value))
    return (type(value).__name__, value)
