"""Leaves the user's model exactly as it was."""

from __future__ import annotations

import gc
import inspect
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from . import casts, numbers


@contextmanager
def preserved(model: nn.Module) -> Iterator[Callable[[nn.Module], None]]:
    """Restores every attribute and container, also after an error.

    What was not changed is not touched: another thread may be running the model.

    Yields:
        What restores a module, and all below it, before it runs once more.
    """
    saved = {id(m): (m, dict(m.__dict__), _containers(m)) for m in model.modules()}

    def restore(root: nn.Module) -> None:
        for module in list(root.modules()):
            if id(module) in saved:
                _restore(*saved[id(module)])

    try:
        yield restore
    finally:
        for each in saved.values():
            _restore(*each)


def _restore(module: nn.Module, attributes: dict[str, Any], containers: dict[str, Any]) -> None:
    for name in module.__dict__.keys() - attributes.keys():
        del module.__dict__[name]
    module.__dict__.update(attributes)
    for name, content in containers.items():
        _refill(module.__dict__[name], content)


def _containers(module: nn.Module) -> dict[str, Any]:
    """Contents of dicts, lists and sets; None stands for empty, as most hook tables are."""
    found = module.__dict__.items()
    return {k: v.copy() if v else None for k, v in found if isinstance(v, (dict, list, set))}


def _refill(container: Any, content: Any) -> None:
    if not container and not content:
        return
    if content and _items(container) == _items(content):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(content or ())
    else:
        container.update(content or ())


def _items(container: Any) -> list[Any]:
    """What tells contents apart: the objects themselves, and the order."""
    items = container.items() if isinstance(container, dict) else ((None, v) for v in container)
    return [(key, id(value)) for key, value in items]


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts the modules of a model into a mode, for this thread alone.

    Another thread that runs the model meanwhile finds it in the mode that it was in.
    """
    modes = {id(module): training for module in model.modules()}
    owner = threading.get_ident()

    def get(module: nn.Module) -> bool:
        if threading.get_ident() == owner and id(module) in modes:
            return modes[id(module)]
        try:
            return bool(module.__dict__["training"])
        except KeyError:
            raise AttributeError("training") from None

    def put(module: nn.Module, mode: bool) -> None:
        if threading.get_ident() == owner and id(module) in modes:
            modes[id(module)] = mode
        else:
            module.__dict__["training"] = mode

    nn.Module.training = property(get, put)  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training


@contextmanager
def without_garbage() -> Iterator[None]:
    """No search for garbage: hardly any is made, and to search what libraries hold takes long."""
    searched = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searched:
            gc.enable()


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
    found = {c: None for m in model.modules() for c in type(m).__mro__}
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


@contextmanager
def calls_seen_by(handler: Any) -> Iterator[None]:
    """Sends this thread's `nn.Module.__call__` through `handler(module, args, kwargs, run)`."""
    original, owner = nn.Module.__call__, threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return original(module, *args, **kwargs)
        return handler(module, args, kwargs, lambda: original(module, *args, **kwargs))

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
