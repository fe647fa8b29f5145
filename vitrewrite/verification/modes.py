"""Whether a forward asks for the mode of a module: if not, it is the same one in training.

Python code learns its mode from `training` alone, so while a model runs that attribute is watched.
Nothing that runs is changed by that; a module in another thread at most makes an answer careful.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..tracing import walk


@dataclass(eq=False)
class Watch:
    """Notes whether anything asked."""

    asked: bool


class _Mode:
    """The attribute `training` of all modules, as it is without, with those who read it noted."""

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        for each in _WATCHES:
            each.asked = True
        if module is None or "training" not in module.__dict__:
            raise AttributeError(f"'{owner.__name__}' has no attribute 'training'")
        return module.__dict__["training"]

    def __set__(self, module: nn.Module, value: Any) -> None:
        module.__dict__["training"] = value


_LOCK = threading.Lock()
_WATCHES: list[Watch] = []


@contextmanager
def mode_watched(module: nn.Module) -> Iterator[Watch]:
    """Watches whether what runs here reads the mode of a module.

    Args:
        module: what is run; what of it is compiled is taken to ask, for that is not seen.
    """
    watch = Watch(any(map(_is_compiled, walk.modules(module))))
    with _LOCK:
        if not _WATCHES:
            nn.Module.training = _Mode()  # type: ignore[assignment]
        _WATCHES.append(watch)
    try:
        yield watch
    finally:
        with _LOCK:
            _WATCHES.remove(watch)
            if not _WATCHES:
                del nn.Module.training


def _is_compiled(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule) or module._compiled_call_impl is not None
