"""Leaves the user's model exactly as it was."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from . import casts, numbers, walk


class Snapshot:
    """Every attribute and container of a model.

    What was not changed is not touched to restore it: another thread may be running the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._saved = {id(m): (m, m.__dict__.copy(), _containers(m)) for m in walk.modules(model)}

    def restore(self, root: nn.Module | None = None) -> None:
        """Restores all modules, or only `root` and what is below it."""
        if root is None:
            for each in self._saved.values():
                _restore(*each)
            return
        for module in walk.modules(root):
            if id(module) in self._saved:
                _restore(*self._saved[id(module)])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """In here the model may be changed, which is undone, also after an error."""
        try:
            yield
        finally:
            self.restore()


def preserved(model: nn.Module) -> AbstractContextManager[None]:
    """In here a model may be changed, which is undone, also after an error."""
    return Snapshot(model).kept()


Containers = list[tuple[Any, Any]]
"""Dicts, lists and sets, and what they held; None stands for empty, as most hook tables are."""


def _restore(module: nn.Module, attributes: dict[str, Any], containers: Containers) -> None:
    for name in module.__dict__.keys() - attributes.keys():
        del module.__dict__[name]
    module.__dict__.update(attributes)
    for container, content in containers:
        if (container or content) and not _holds(container, content):
            container.clear()
            if isinstance(container, list):
                container.extend(content or ())
            else:
                container.update(content or ())


def _containers(module: nn.Module) -> Containers:
    held = module.__dict__.values()
    return [(v, v.copy() if v else None) for v in held if isinstance(v, (dict, list, set))]


def _holds(container: Any, content: Any) -> bool:
    """Whether it holds the same objects in the same order; what is equal may be another one."""
    if content is None or len(container) != len(content):
        return False
    values = isinstance(container, dict)
    alike = not values or all(map(operator.is_, container.values(), content.values()))
    return alike and all(map(operator.is_, container, content))


@contextmanager
def tracked_builtins(model: nn.Module) -> Iterator[None]:
    """Lets built-in functions, `int`, `float` and functions of `math` be operations on sizes.

    The original ones would compare sizes, or give plain numbers.
    """
    made: dict[str, Any] = {
        "min": numbers.minimum, "max": numbers.maximum, "len": numbers.length,
        "int": casts.integer, "float": casts.real,
    }  # fmt: skip
    spaces = list({id(s): s for s in _with_helpers(_spaces(model))}.values())
    free = {id(s): {"min", "max", "len", *casts.only_called(s)} for s in spaces}
    changed = [(s, name) for s in spaces for name in free[id(s)] if name not in s]
    own = {name: numbers.recorded(getattr(math, name)) for name in _OF_MATH}
    own["prod"] = numbers.product
    before = {name: getattr(math, name) for name in own}
    of = {id(before[name]): own[name] for name in own}
    imported = [(s, k, v) for s in spaces for k, v in s.items() if id(v) in of]
    imported += [(vars(math), k, v) for k, v in before.items()]
    for space, name in changed:
        space[name] = made[name]
    for space, name, value in imported:
        space[name] = of[id(value)]
    try:
        yield
    finally:
        for space, name, value in imported:
            space[name] = value
        for space, name in changed:
            del space[name]


_OF_MATH = ("sqrt", "isqrt", "log", "log2", "log10", "exp", "gcd", "pow")


def _classes(model: nn.Module) -> list[type]:
    """The classes that the model's forwards are in, without torch's."""
    found = {c: None for m in walk.modules(model) for c in type(m).__mro__}
    foreign = ("torch", "builtins", "abc", "typing")
    return [c for c in found if c.__module__.partition(".")[0] not in foreign]


def _spaces(model: nn.Module) -> list[dict[str, Any]]:
    """The global names of the files that the model's classes are in."""
    found: dict[int, dict[str, Any]] = {}
    for cls in _classes(model):
        forward = vars(cls).get("forward")
        spaces = [getattr(inspect.unwrap(forward), "__globals__", None)] if forward else []
        module = sys.modules.get(cls.__module__)
        for space in (*spaces, vars(module) if module else None):
            if space is not None:
                found[id(space)] = space
    return list(found.values())


def _with_helpers(spaces: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The files of the model, and those whose functions they call."""
    foreign = ("torch", "builtins", "vitrewrite", *sys.stdlib_module_names)
    for space in spaces:
        yield space
        for value in list(space.values()):
            if isinstance(value, FunctionType) and value.__globals__ is not space:
                name = str(value.__globals__.get("__name__", ""))
                if name.partition(".")[0] not in foreign:
                    yield value.__globals__
