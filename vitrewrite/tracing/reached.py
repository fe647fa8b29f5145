"""What the methods of a class reach: the functions that they name, and so on, down to caches."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn

_FOREIGN = {"torch", "numpy", "typing", "abc", "builtins", *sys.stdlib_module_names}
_MOST = 20_000  # functions that are looked into: no model reaches so many
_STORE = dis.opmap["STORE_SUBSCR"]
_WRITING = frozenset({"setdefault", "update", "__setitem__"})
SIMPLE = frozenset({bool, int, float, str, tuple, list, type(None)})
"""Types that are neither a cache nor lead to one."""


class Spot(NamedTuple):
    """Where something is held: a name in a namespace, an attribute of a class, or a closure."""

    holder: Any
    name: str

    def get(self) -> Any:
        """What it holds now; None if it holds nothing."""
        if isinstance(self.holder, dict):
            return self.holder.get(self.name)
        if isinstance(self.holder, type):
            return vars(self.holder).get(self.name)
        try:
            return self.holder.cell_contents
        except ValueError:  # an empty cell
            return None

    def put(self, value: Any) -> None:
        """Lets it hold something else."""
        if isinstance(self.holder, dict):
            self.holder[self.name] = value
        elif isinstance(self.holder, type):
            setattr(self.holder, self.name, value)
        else:
            self.holder.cell_contents = value


class _Look(NamedTuple):
    """What is found where something is looked into: places, and what is reached from there."""

    places: list[Spot]
    next: list[Any]


class Search:
    """Goes from functions to what they name; what several classes reach is looked into once."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._steps: dict[int, _Look] = {}  # by the id of what was looked into
        self._kept: list[Any] = []  # so that each id stays its own

    def of(self, cls: type) -> list[Spot]:
        """The places that the methods of a class and its bases reach."""
        places: list[Spot] = []
        seen: set[int] = set()
        waiting: list[Any] = [cls]
        while waiting and len(seen) < _MOST:
            value = waiting.pop()
            if id(value) not in seen:
                seen.add(id(value))
                step = self._step(value)
                places += step.places
                waiting += step.next
        return places

    def _step(self, value: Any) -> _Look:
        found = self._steps.get(id(value))
        if found is None:
            found = self._steps[id(value)] = _Look([], [])
            self._kept.append(value)
            self._look(value, found)
        return found

    def _look(self, value: Any, found: _Look) -> None:
        if isinstance(value, (staticmethod, classmethod, MethodType)):
            found.next.append(value.__func__)
        elif isinstance(value, property):
            found.next.extend(f for f in (value.fget, value.fset) if f)
        elif isinstance(value, functools.cached_property):
            found.next.append(value.func)
        elif isinstance(value, functools.partial):
            found.next.extend((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, functools._lru_cache_wrapper):
            found.next.append(value.__wrapped__)
        elif isinstance(value, FunctionType):
            self._function(value, found)
        elif isinstance(value, type):
            self._class(value, found)
        elif not isinstance(value, (nn.Module, torch.Tensor, ModuleType)):
            found.next.append(type(value))  # an object that is held, and its methods

    def _class(self, cls: type, found: _Look) -> None:
        for each in cls.__mro__:
            if is_foreign(each.__module__):
                continue
            for name, value in list(vars(each).items()):
                _held(found, Spot(each, name), value, name in self._code.written(cls))

    def _function(self, function: FunctionType, found: _Look) -> None:
        if is_foreign(function.__module__):
            return
        written = self._code.writes(function.__code__)
        for cell in function.__closure__ or ():
            _held(found, Spot(cell, ""), Spot(cell, "").get(), written)
        names = self._code.names(function.__code__)
        for name in names:
            value = function.__globals__.get(name)
            if value is not None:
                _held(found, Spot(function.__globals__, name), value, written)
            if isinstance(value, ModuleType) and not is_foreign(value.__name__):
                for part in names & vars(value).keys():
                    _held(found, Spot(vars(value), part), vars(value)[part], written)


def _held(found: _Look, place: Spot, value: Any, written: bool) -> None:
    inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    pythons = place.name.startswith("_") and place.name.endswith("_")  # annotations, enums
    filled = type(value) is dict and written  # a dict that is only read is a table
    if (isinstance(inner, functools._lru_cache_wrapper) or filled) and not pythons:
        found.places.append(place)
    if not isinstance(value, (str, int, float, dict, list, tuple, set, type(None))):
        found.next.append(value)


def is_foreign(module: str | None) -> bool:
    """Whether a module is torch's, numpy's or Python's own."""
    return (module or "builtins").partition(".")[0] in _FOREIGN


class Code:
    """What functions name, and whether they write: each is read once, of thousands."""

    def __init__(self) -> None:
        self._names: dict[int, set[str]] = {}
        self._writes: dict[int, bool] = {}
        self._written: dict[type, set[str]] = {}
        self._kept: list[CodeType] = []  # so that each id stays its own

    def names(self, code: CodeType) -> set[str]:
        """The names that a function and those inside of it use."""
        if id(code) not in self._names:
            self._kept.append(code)
            self._names[id(code)] = set(code.co_names).union(*map(self.names, _inside(code)))
        return self._names[id(code)]

    def writes(self, code: CodeType) -> bool:
        """Whether a function, or one inside of it, puts something under a key."""
        if id(code) not in self._writes:
            self._kept.append(code)
            own = _STORE in code.co_code[::2] or not _WRITING.isdisjoint(code.co_names)
            self._writes[id(code)] = own or any(map(self.writes, _inside(code)))
        return self._writes[id(code)]

    def written(self, cls: type) -> set[str]:
        """The names in methods of a class that put something under a key."""
        if cls not in self._written:
            methods = [inspect.unwrap(v) for v in vars(cls).values() if type(v) not in SIMPLE]
            codes = [m.__code__ for m in methods if isinstance(m, FunctionType)]
            own = [self.names(code) for code in codes if self.writes(code)]
            inherited = [self.written(base) for base in cls.__mro__[1:]]
            self._written[cls] = set().union(*own, *inherited)
        return self._written[cls]


def _inside(code: CodeType) -> Iterator[CodeType]:
    return (c for c in code.co_consts if isinstance(c, CodeType))
