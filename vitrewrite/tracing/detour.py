"""Calls of modules, and reads of the mode that they are in, by way of a trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from . import walk

Handler = Callable[[nn.Module, Any, Any, Callable[[], Any]], Any]
"""What answers `module(*args, **kwargs)`: it is given these, and what calls the module for real."""


class Detour:
    """What `nn.Module` does meanwhile in the thread that this is made in; others find it as it was.

    It is put in place once for all traces of a model: each change of `nn.Module` has Python forget
    what it knows of every class of modules there is.
    """

    def __init__(self) -> None:
        self._owner = threading.get_ident()
        self._handler: Handler | None = None
        self._modes: dict[int, bool] = {}

    @contextmanager
    def placed(self) -> Iterator[None]:
        """In here, traces may go by it."""
        original = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            handler = self._handler
            if handler is None or threading.get_ident() != self._owner:
                return original(module, *args, **kwargs)
            return handler(module, args, kwargs, lambda: original(module, *args, **kwargs))

        nn.Module.__call__ = call  # type: ignore[method-assign]
        nn.Module.training = property(self._get, self._put)  # type: ignore[assignment]
        try:
            yield
        finally:
            del nn.Module.training
            nn.Module.__call__ = original  # type: ignore[method-assign]

    @contextmanager
    def taken(self, model: nn.Module, handler: Handler, *, training: bool) -> Iterator[None]:
        """Calls go through `handler`, and the modules of `model` are in one mode."""
        self._modes = {id(module): training for module in walk.modules(model)}
        self._handler = handler
        try:
            yield
        finally:
            self._modes, self._handler = {}, None

    def _get(self, module: nn.Module) -> bool:
        if id(module) in self._modes and threading.get_ident() == self._owner:
            return self._modes[id(module)]
        try:
            return bool(module.__dict__["training"])
        except KeyError:
            raise AttributeError("training") from None

    def _put(self, module: nn.Module, mode: bool) -> None:
        if id(module) in self._modes and threading.get_ident() == self._owner:
            self._modes[id(module)] = mode
        else:
            module.__dict__["training"] = mode
