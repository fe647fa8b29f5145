"""Caches that a model's forwards reach, in its own files and in the libraries that these call.

A cache that is filled while tracing would hand traced values to the user's model later on, and one
that was filled before has values of other sizes in it, which no graph knows. So caches are passed
by: `functools.lru_cache` calls what it wraps, and dicts forget what holds tensors.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from . import tree, walk
from .numbers import Tracked, plain
from .reached import SIMPLE, Code, Search, Spot, is_foreign

if TYPE_CHECKING:
    from .recorder import Recorder

_STATE = frozenset(vars(nn.Module()))
_KNOWN: weakref.WeakKeyDictionary[type, list[Spot]] = weakref.WeakKeyDictionary()


class Caches(NamedTuple):
    """What the model's forwards reach.

    Attributes:
        places: where caches are, or may be.
        helpers: the attributes of objects that modules hold.
    """

    places: list[Spot]
    helpers: list[dict[str, Any]]

    @classmethod
    def of(cls, model: nn.Module) -> Caches:
        """Those of a model."""
        places: dict[tuple[int, str], Spot] = {}
        helpers: dict[int, dict[str, Any]] = {}
        modules, code = walk.modules(model), Code()
        search = Search(code)
        for kind in dict.fromkeys(map(type, modules)):
            if kind not in _KNOWN:
                _KNOWN[kind] = search.of(kind)
            places |= {(id(p.holder), p.name): p for p in _KNOWN[kind]}
        for module in modules:
            for name, value in vars(module).items():
                if type(value) in SIMPLE or name in _STATE:
                    continue
                if _is_cache(value) and name in code.written(type(module)):
                    places[id(vars(module)), name] = Spot(vars(module), name)
                elif hasattr(value, "__dict__") and not _is_known(value):
                    helpers[id(value)] = vars(value)
        for held in helpers.values():
            found = (k for k, v in held.items() if _is_cache(v))
            places |= {(id(held), k): Spot(held, k) for k in found}
        return cls(list(places.values()), list(helpers.values()))


def _is_known(value: Any) -> bool:
    named = (nn.Module, torch.Tensor, type, FunctionType, MethodType, ModuleType)
    return isinstance(value, named) or is_foreign(type(value).__module__)


def _is_cache(value: Any) -> bool:
    if isinstance(value, functools._lru_cache_wrapper):
        return True
    return type(value) is dict and (not value or any(map(_is_traced, value.values())))


@contextmanager
def passed_by(caches: Caches, recorder: Recorder) -> Iterator[None]:
    """Takes the caches out of the way of a trace, and leaves them as they were."""
    with ExitStack() as undo:
        for held in caches.helpers:
            undo.callback(_restore, held, held.copy())
        twins: dict[int, Any] = {}
        for place in caches.places:
            value = place.get()
            kind = type(value) if isinstance(value, (staticmethod, classmethod)) else None
            inner = value.__func__ if kind else value
            if isinstance(inner, functools._lru_cache_wrapper):
                new = twins.setdefault(id(inner), _uncached(inner))
            elif type(value) is dict and _may_be_cache(value):
                new = twins.setdefault(id(value), _Forgetful(value, recorder))
            else:
                continue
            undo.callback(place.put, value)
            place.put(kind(new) if kind else new)
        yield


def _restore(held: dict[str, Any], known: dict[str, Any]) -> None:
    """Gives an object the attributes that it had."""
    for name in held.keys() - known.keys():
        del held[name]
    held.update(known)


def _uncached(cached: Any) -> Callable[..., Any]:
    """Calls what is wrapped, unless what comes of it has nothing to do with the trace."""
    clean: set[Any] = set()

    @functools.wraps(cached.__wrapped__)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_traced((args, kwargs)):
            return cached.__wrapped__(*args, **kwargs)
        key = (args, tuple(kwargs.items()))
        if key not in clean:
            result = cached.__wrapped__(*args, **kwargs)
            if _is_traced(result):
                return result
            clean.add(key)
        return cached(*args, **kwargs)  # what is shared by all who call it stays one object

    for name in ("cache_info", "cache_clear", "cache_parameters"):
        setattr(call, name, getattr(cached, name))
    return call


def _may_be_cache(value: dict[Any, Any]) -> bool:
    """Whether it is empty, or holds tensors or numbers; tables of classes and functions are not."""
    return not value or all(_is_plain(v) for v in list(value.values())[:8])


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return all(isinstance(v, (torch.Tensor, int, float, tuple, list, type(None))) for v in items)


def _is_traced(value: Any) -> bool:
    return next(tree.leaves(value), None) is not None


class _Forgetful(dict[Any, Any]):
    """A dict in whose stead it stands, without tensors.

    What a trace puts in under a size stays in its frame: others have sizes of their own.
    """

    def __init__(self, known: dict[Any, Any], recorder: Recorder) -> None:
        super().__init__({k: v for k, v in known.items() if not _is_traced(v)})
        self._recorder = recorder
        self._own: list[tuple[Any, Any, Any]] = []

    def _find(self, key: Any) -> tuple[Any, ...] | None:
        frame = self._recorder.frame if self._recorder.frames else None
        return next((e for e in self._own if e[2] in (None, frame) and _same(e[0], key)), None)

    def __contains__(self, key: Any) -> bool:
        if self._find(key) is not None:
            return True
        # A table of sizes is looked up for good: what it says holds for one size.
        return bool(super().__len__()) and super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        found = self._find(key)
        if found is not None:
            return found[1]
        if not super().__len__():
            raise KeyError(key)
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of a key."""
        return self[key] if key in self else default  # noqa: SIM401 - this is what defines it

    def __setitem__(self, key: Any, value: Any) -> None:
        self._own = [e for e in self._own if e is not self._find(key)]
        if _is_traced((key, value)):
            frame = self._recorder.frame if self._recorder.frames and _is_traced(key) else None
            self._own.append((key, value, frame))
        else:
            super().__setitem__(key, value)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is put in if it is not there."""
        if key not in self:
            self[key] = default
        return self[key]

    def __len__(self) -> int:
        return super().__len__() + len(self._own)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield from (key for key, _, _ in self._own)

    def keys(self) -> Any:
        """All keys."""
        return list(self)

    def values(self) -> Any:
        """All values."""
        return [*super().values(), *(value for _, value, _ in self._own)]

    def items(self) -> Any:
        """All keys with their values."""
        return list(zip(self, self.values(), strict=True))

    def __deepcopy__(self, memo: Any) -> dict[Any, Any]:
        return dict(self)

    def clear(self) -> None:
        """Forgets everything."""
        self._own.clear()
        super().clear()


def _same(a: Any, b: Any) -> bool:
    """Whether two keys are one, whatever the sizes; no number is looked at for good."""
    if isinstance(a, Tracked) or isinstance(b, Tracked):
        if not (isinstance(a, Tracked) and isinstance(b, Tracked)):
            return False
        return a is b or (plain(a), a.witnesses) == (plain(b), b.witnesses)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    return bool(a == b)
